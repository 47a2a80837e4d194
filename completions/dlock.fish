# fish completion for dlock(1): asks dlock itself what may stand at the cursor, see dlock-completions(1).

function __dlock_complete
    set -l words (commandline --tokenize --current-process --cut-at-cursor) (commandline --current-token --cut-at-cursor)
    set -l position (math (count $words) - 1)
    set -l answer (command $words[1] __complete $position $words[2..] 2>/dev/null)
    if string match --quiet --regex '^\tcommand ' -- $answer[1]
        set -l first (math (string match --regex '\d+$' -- $answer[1]) + 1)
        complete --do-complete (string join ' ' -- (string escape -- $words[$first..-2]) $words[-1])
    else if test "$answer[1]" = \t'files'
        # As behind a command that nothing is known of.
        set -l option (string match --regex '^--[^=]*=' -- $words[-1])
        string replace --regex '^' -- "$option" (complete --do-complete "__dlock_files "(string replace --regex '^--[^=]*=' '' -- $words[-1]))
    else
        string replace --regex '\t$' '' -- $answer
    end
end

complete --command dlock --no-files --keep-order --arguments '(__dlock_complete)'
