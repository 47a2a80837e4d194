# bash completion for dlock(1): asks dlock itself what may stand at the cursor, see dlock-completions(1).

_dlock() {
    local begun=$2 line=${COMP_LINE:0:COMP_POINT} words=() starts=() index blanks word
    # bash splits words at = and : too; dlock gets them as they were typed.
    for ((index = 0; index <= COMP_CWORD; index++)); do
        blanks=${line%%[![:space:]]*}
        line=${line#"$blanks"}
        word=${COMP_WORDS[index]}
        ((index < COMP_CWORD)) || word=$line
        line=${line#"$word"}
        if [[ -n $blanks || $index == 0 ]]; then
            words+=("$word") starts+=("$index")
        else
            words[${#words[@]} - 1]+=$word
        fi
    done
    local position=$((${#words[@]} - 1)) answer candidate
    local before=${words[position]%"$begun"}
    mapfile -t answer < <("$1" __complete "$position" "${words[@]:1}" 2>/dev/null)
    COMPREPLY=()
    if [[ ${answer[0]} == $'\tcommand '* ]]; then
        if declare -F _command_offset >/dev/null; then
            _command_offset "${starts[${answer[0]##* }]}"
        else
            compopt -o default
        fi
        return
    fi
    if [[ ${answer[0]} == $'\tfiles' ]]; then
        compopt -o default
        return
    fi
    for candidate in "${answer[@]}"; do
        candidate=${candidate%%$'\t'*}
        printf -v candidate %q "${candidate#"$before"}"
        COMPREPLY+=("$candidate")
    done
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=/] ]]; then
        compopt -o nospace
    fi
}

complete -F _dlock dlock
