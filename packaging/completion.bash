# bash completion for ampcio

_ampcio() {
	local cur=${COMP_WORDS[COMP_CWORD]} word says file
	COMPREPLY=()
	while IFS=$'\t' read -r word says; do
		if [ "$word" = :files ]; then
			compopt -o filenames 2>/dev/null
			while IFS= read -r file; do
				COMPREPLY+=("$file")
			done < <(compgen -f -- "$cur")
		else
			COMPREPLY+=("$word")
		fi
	done < <("${COMP_WORDS[0]/#\~/$HOME}" complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}

complete -F _ampcio ampcio
