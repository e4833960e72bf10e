# make deb        dist/*.deb for amd64 and arm64, reproducible (packaging/build)
# make tarball    dist/*.tar.gz with a static binary, and SHA256SUMS
# make check      what is built: reproducible, lintian, man pages, completions, and its life on a machine (root)
# make notice     NOTICE anew, after the modules have changed
.PHONY: deb tarball check notice
deb tarball:
	packaging/build $@

check:
	packaging/check

notice:
	go test -count=1 -run '^TestNotice$$' . -update
	git diff --stat NOTICE
