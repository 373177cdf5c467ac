# Sourced by the scripts in this folder. Each takes --help, which prints its header, and
# --dry-run, which prints the commands that would run, quoted to be pasted into a shell.
here=$(dirname "$0")
dry_run='' arguments=() positional=()

die() { echo "error: $*" >&2 && exit 2; }

# parse "OPTIONS" "FLAGS" WORDS...: read --key=value into $key and --flag into $flag,
# with _ for -. Words after -- become `arguments`, others `positional`.
parse() {
  local options=" $1 " flags=" $2 " word key
  for key in $1 $2; do printf -v "${key//-/_}" ''; done
  shift 2
  while (($#)); do
    word=$1 key=${1%%=*} && key=${key#--} && shift
    case $word in
      --help) awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0" && exit ;;
      --dry-run) dry_run=1 ;;
      --) arguments=("$@") && return ;;
      --*=*) [[ $options == *" $key "* ]] || die "There is no option $word; see --help."
        printf -v "${key//-/_}" %s "${word#*=}" ;;
      -*) [[ $options != *" $key "* ]] || die "Write --$key=VALUE, with =."
        [[ $flags == *" $key "* ]] || die "There is no option $word; see --help."
        printf -v "${key//-/_}" 1 ;;
      *) positional+=("$word") ;;
    esac
  done
}

need() { # need NAME...: exit if an option is missing
  local key
  for key; do [[ ${!key} ]] || die "Give --${key//_/-}=VALUE; see --help."; done
}

quote() { # print words as a shell would read them
  local word flag line=''
  for word; do
    flag='' && if [[ $word =~ ^--?[a-z-]+= ]]; then flag=${BASH_REMATCH[0]}; fi
    word=${word#"$flag"}
    [[ $word =~ ^[[:alnum:]_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $flag$word"
  done
  echo "${line# }"
}

call() { if [[ $dry_run ]]; then quote "$@"; else "$@"; fi; }

requirement() { # print what pip installs: the wheel, or a commit of the project's url
  local url && url=$(sed -n 's/^url = //p' "$here/../setup.cfg")
  if [[ $wheel ]]; then
    [[ -f $wheel ]] || die "There is no wheel $wheel: run \`make wheel\`."
    echo "./${wheel##*/}[$1]" && return
  elif [[ $url == *example.org* ]]; then
    die "The url in setup.cfg leads nowhere: give --wheel=FILE, from \`make wheel\`."
  elif [[ ! $commit && $(git -C "$here" status --porcelain) ]]; then
    die "The checkout has changes that are not committed, so no machine could get them."
  fi
  echo "migan_jax[$1] @ git+$url@${commit:-$(git -C "$here" rev-parse HEAD)}"
}
