# shellcheck shell=bash
# What the scripts of this folder share; they source it, it does nothing by itself. For bash 3.2 (macOS) and newer.

# help: the comment at the head of the script, then its settings, which are its lines `NAME=${NAME:-default} # what it is`.
help() {
  sed -n '2,/^[^#]/ s/^# \{0,1\}//p' "$0"
  echo "Settings, as environment variables, with their defaults:"
  sed -n 's/^\([A-Z_]*\)=${[A-Z_]*:-\(.*\)} *# \(.*\)$/  \1=\2   (\3)/p' "$0"
}

# quoted WORD...: the words as one line that any shell reads back as the same words.
quoted() {
  local word line='' quote="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word=\'${word//\'/$quote}\' ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# run WORD...: the command; with --dry-run, print it and do nothing.
run() {
  if [ -n "$DRY_RUN" ]; then quoted "$@"; else "$@"; fi
}

# become WORD...: the same, in place of this script, so that signals reach the command and its exit code is the script's.
become() {
  if [ -n "$DRY_RUN" ]; then quoted "$@"; else exec "$@"; fi
}

# options WORD...: takes --help and --dry-run, wherever they stand; REST is what remains.
options() {
  DRY_RUN='' REST=()
  local word
  for word in "$@"; do
    case $word in
      -h | --help) help; exit 0 ;;
      -n | --dry-run) DRY_RUN=1 ;;
      *) REST+=("$word") ;;
    esac
  done
}

# number NAME LEAST: an error unless the setting NAME is a whole number, at least LEAST.
number() {
  case ${!1} in
    '' | *[!0-9]*) ;;
    *) [ "${!1}" -lt "$2" ] || return 0 ;;
  esac
  echo "$1: wanted a whole number, at least $2, got '${!1}'" >&2
  exit 2
}

# the_line PYTHON WORD...: sets LINE to the one line that every script ends in, with further flags of ilr_jax.main.
# shellcheck disable=SC2034  # LINE is read by the scripts
the_line() {
  local python=$1
  shift
  LINE=("$python" -m ilr_jax.main "--config=$CONFIG" "--workdir=$WORKDIR" "$@")
}
