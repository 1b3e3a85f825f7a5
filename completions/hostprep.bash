# shellcheck shell=bash
# Completion of hostprep in bash. `make install` puts it where the package bash-completion looks.

_hostprep() {
    local -a words lines
    local line last kind value path found replaced=${2//\\/}
    # In COMP_WORDS each = and : is a word of its own. A backslash keeps a space in its word, the dot an empty last one.
    # shellcheck disable=SC2162
    read -a words <<<"${COMP_LINE:0:COMP_POINT}."
    words=("${words[@]//[\"\']/}")
    last=${words[-1]%.}
    words[-1]=$last
    mapfile -t lines < <(
        IFS=$'\n'
        COMP_WORDS="${words[*]}" _HOSTPREP_COMPLETE=words_complete /usr/local/bin/hostprep 2>/dev/null
    )
    COMPREPLY=()
    for line in "${lines[@]}"; do
        IFS=$'\t' read -r kind value _ <<<"$line"
        case $kind in
            plain)
                COMPREPLY+=("$value")
                if [[ $value = *= ]]; then compopt -o nospace; fi
                ;;
            dir | file)
                compopt -o filenames
                path=${last#"$value"}
                while IFS= read -r found; do COMPREPLY+=("$value$found"); done < <(compgen -A "${kind/dir/directory}" -- "$path")
                ;;
        esac
    done
    # Readline replaces what it takes for the word, $2: what comes before that stays.
    if [[ $last = *"$replaced" ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${last%"$replaced"}"}")
    fi
}

complete -F _hostprep hostprep
