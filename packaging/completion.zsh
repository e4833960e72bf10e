#compdef ampcio

_ampcio() {
	local line word
	local -a found
	local -i files=0
	while IFS= read -r line; do
		if [[ $line == :files ]]; then
			files=1
		else
			word=${line%%$'\t'*}
			found+=("${word//:/\\:}:${line#*$'\t'}")
		fi
	done < <("${words[1]/#\~/$HOME}" complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)
	(( ! $#found )) || _describe -t words ampcio found
	(( ! files )) || _files
}

if [[ ${funcstack[1]} == _ampcio ]]; then
	_ampcio "$@"
else
	compdef _ampcio ampcio
fi
