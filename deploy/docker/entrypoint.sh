#!/bin/sh
# The container's arguments: a command of tdpipe (`route --instances URL`), or those of `tdpipe serve`.
set -eu

case "${1:-}" in
-h | --help | -V | --version) exec tdpipe "$@" ;;
'' | -* | */*) exec tdpipe serve "$@" ;;
esac
if tdpipe --help | grep "^  $1 " >/dev/null; then
    exec tdpipe "$@"
fi
exec tdpipe serve "$@"
