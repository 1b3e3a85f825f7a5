# Completion of hostprep in fish. `make install` puts it into vendor_completions.d.

function __hostprep_candidates
    set -l last (commandline -ct | string replace -ra '[\'"\\\\]' '')
    set -lx COMP_WORDS (commandline -opc | string collect)\n"$last"
    set -lx _HOSTPREP_COMPLETE words_complete
    for line in (/usr/local/bin/hostprep 2>/dev/null)
        set -l answered (string split \t -- $line)
        set -l path (string replace -- "$answered[2]" "" "$last")
        switch $answered[1]
            case plain
                printf '%s\t%s\n' $answered[2] "$answered[3]"
            case dir
                for found in (__fish_complete_directories "$path" "")
                    printf '%s%s\n' "$answered[2]" $found
                end
            case file
                for found in (__fish_complete_path "$path")
                    printf '%s%s\n' "$answered[2]" $found
                end
        end
    end
end

complete -c hostprep -f -k -a '(__hostprep_candidates)'
