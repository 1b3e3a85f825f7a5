#compdef hostprep
# Completion of hostprep in zsh. `make install` puts it into site-functions, as _hostprep.

local line kind value
local -a asked=("${(@Q)words[1,CURRENT-1]}" "$PREFIX") answered plain open

for line in "${(@f)$(COMP_WORDS=${(pj:\n:)asked} _HOSTPREP_COMPLETE=words_complete /usr/local/bin/hostprep 2>/dev/null)}"; do
    answered=("${(@ps:\t:)line}")
    kind=$answered[1] value=$answered[2]
    case $kind in
        dir) compset -P "${(b)value}"; _path_files -/ && return ;;
        file) compset -P "${(b)value}"; _path_files && return ;;
        plain)
            if [[ $value = *= ]]; then open+=("$value"); else plain+=("${value//:/\\:}:$answered[3]"); fi
            ;;
    esac
done
compadd -S '' -a open
_describe -V hostprep plain
