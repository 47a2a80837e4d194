# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_dlock_global_optspecs
    string join \n endpoints= cacert= cert= key= user= password-file= prefix= connect-timeout= config= v/verbose q/quiet log-format= h/help V/version
end

function __fish_dlock_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_dlock_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_dlock_using_subcommand
    set -l cmd (__fish_dlock_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c dlock -n "__fish_dlock_needs_command" -l endpoints -d 'Members of the etcd cluster, separated by commas' -r -f -a "(__fish_print_hostnames)"
complete -c dlock -n "__fish_dlock_needs_command" -l cacert -d 'Trust the certificate authorities in this PEM file instead of the system\'s' -r -F
complete -c dlock -n "__fish_dlock_needs_command" -l cert -d 'Client certificate, a PEM file; needs --key' -r -F
complete -c dlock -n "__fish_dlock_needs_command" -l key -d 'Private key of the client certificate, a PEM file; needs --cert' -r -F
complete -c dlock -n "__fish_dlock_needs_command" -l user -d 'etcd user' -r -f
complete -c dlock -n "__fish_dlock_needs_command" -l password-file -d 'File that holds the user\'s password; one newline at its end is ignored' -r -F
complete -c dlock -n "__fish_dlock_needs_command" -l prefix -d 'Where dlock\'s keys begin in etcd' -r -f
complete -c dlock -n "__fish_dlock_needs_command" -l connect-timeout -d 'How long to try to reach etcd before giving up; default 10s' -r -f
complete -c dlock -n "__fish_dlock_needs_command" -l config -d 'Configuration file' -r -F
complete -c dlock -n "__fish_dlock_needs_command" -l log-format -d 'Form of the messages on stderr, text or json; default text' -r -f -a "text\t''
json\t''"
complete -c dlock -n "__fish_dlock_needs_command" -s v -l verbose -d 'Say more: what is waited for; twice: every step'
complete -c dlock -n "__fish_dlock_needs_command" -s q -l quiet -d 'Say errors only'
complete -c dlock -n "__fish_dlock_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c dlock -n "__fish_dlock_needs_command" -s V -l version -d 'Print version'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "run" -d 'Run a command while holding a lock'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "fence" -d 'Refuse a token that is lower than the highest one seen, else run a command'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "hold" -d 'Hold a lock without a command'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "release" -d 'End a dlock hold that runs in the background'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "ls" -d 'List the locks'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "status" -d 'Show the queue of a lock'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "check" -d 'Test whether a token still has its lock'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "break" -d 'Send away who has a lock, or waits for it'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "doctor" -d 'Say what would go wrong tonight'
complete -c dlock -n "__fish_dlock_needs_command" -f -a "completions" -d 'Print the completions for a shell'
complete -c dlock -n "__fish_dlock_using_subcommand run" -s c -l command -d 'Run STRING with $SHELL -c instead of a command' -r -f -a "(__fish_complete_command)"
complete -c dlock -n "__fish_dlock_using_subcommand run" -l local -d 'Use the locks of this machine alone, in files instead of etcd' -r -f -a "(__fish_complete_directories)"
complete -c dlock -n "__fish_dlock_using_subcommand run" -s w -l wait -d 'If the lock is busy, wait no longer than this; 0 is --no-wait' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -s E -l conflict-exit-code -d 'Exit status for a busy lock, 0 to 255; default 75' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -l ttl -d 'How long etcd keeps the lock for a dlock that it cannot hear; default 30s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -s k -l kill-after -d 'How long the command may take to end when it is told to, before it is killed' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -l signal -d 'Signal that tells the command to end; default TERM' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -l slots -d 'Let so many hold the lock at once, 1 to 1000' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -l min-hold -d 'Keep the lock at least for so long, counted by etcd from the moment that it was taken' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -l max-hold -d 'Stop the command after so long, then end with status 124' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -l once-per -d 'Start at most once in this time on all hosts together, counted by etcd' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -l supersede -d 'Send away those who wait already: the newest request wins' -r -f -a "waiters\t''
holder\t''"
complete -c dlock -n "__fish_dlock_using_subcommand run" -l note -d 'Text that others see while they wait for the lock' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -l report -d 'Write at the end what became of it, as a JSON object in this file' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand run" -l metrics -d 'Add at the end to the metrics in this file, for the textfile collector of Prometheus\' node exporter' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand run" -l leftovers -d 'What to do with processes that the command leaves behind: kill, wait or leave; default kill' -r -f -a "kill\t''
wait\t''
leave\t''"
complete -c dlock -n "__fish_dlock_using_subcommand run" -l endpoints -d 'Members of the etcd cluster, separated by commas' -r -f -a "(__fish_print_hostnames)"
complete -c dlock -n "__fish_dlock_using_subcommand run" -l cacert -d 'Trust the certificate authorities in this PEM file instead of the system\'s' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand run" -l cert -d 'Client certificate, a PEM file; needs --key' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand run" -l key -d 'Private key of the client certificate, a PEM file; needs --cert' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand run" -l user -d 'etcd user' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -l password-file -d 'File that holds the user\'s password; one newline at its end is ignored' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand run" -l prefix -d 'Where dlock\'s keys begin in etcd' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -l connect-timeout -d 'How long to try to reach etcd before giving up; default 10s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand run" -l config -d 'Configuration file' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand run" -l log-format -d 'Form of the messages on stderr, text or json; default text' -r -f -a "text\t''
json\t''"
complete -c dlock -n "__fish_dlock_using_subcommand run" -s n -l no-wait -d 'If the lock is busy, end at once'
complete -c dlock -n "__fish_dlock_using_subcommand run" -s s -l shared -d 'Hold the lock beside others that share it, but not beside those that do not'
complete -c dlock -n "__fish_dlock_using_subcommand run" -l reentrant -d 'Run the command straight away if the lock is held around this one already'
complete -c dlock -n "__fish_dlock_using_subcommand run" -s v -l verbose -d 'Say more: what is waited for; twice: every step'
complete -c dlock -n "__fish_dlock_using_subcommand run" -s q -l quiet -d 'Say errors only'
complete -c dlock -n "__fish_dlock_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l token -d 'Token to be let in with; default: DLOCK_FENCING_TOKEN' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l name -d 'Name of the lock that the token is of; default: DLOCK_NAME' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l reset -d 'Make NUMBER the highest token seen, also when that is lower' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l endpoints -d 'Members of the etcd cluster, separated by commas' -r -f -a "(__fish_print_hostnames)"
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l cacert -d 'Trust the certificate authorities in this PEM file instead of the system\'s' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l cert -d 'Client certificate, a PEM file; needs --key' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l key -d 'Private key of the client certificate, a PEM file; needs --cert' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l user -d 'etcd user' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l password-file -d 'File that holds the user\'s password; one newline at its end is ignored' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l prefix -d 'Where dlock\'s keys begin in etcd' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l connect-timeout -d 'How long to try to reach etcd before giving up; default 10s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l config -d 'Configuration file' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l log-format -d 'Form of the messages on stderr, text or json; default text' -r -f -a "text\t''
json\t''"
complete -c dlock -n "__fish_dlock_using_subcommand fence" -l peek -d 'Print the highest token seen, and change nothing'
complete -c dlock -n "__fish_dlock_using_subcommand fence" -s v -l verbose -d 'Say more: what is waited for; twice: every step'
complete -c dlock -n "__fish_dlock_using_subcommand fence" -s q -l quiet -d 'Say errors only'
complete -c dlock -n "__fish_dlock_using_subcommand fence" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l pid -d 'Hold the lock until this process has ended, and end it if the lock is lost' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l local -d 'Use the locks of this machine alone, in files instead of etcd' -r -f -a "(__fish_complete_directories)"
complete -c dlock -n "__fish_dlock_using_subcommand hold" -s w -l wait -d 'If the lock is busy, wait no longer than this; 0 is --no-wait' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -s E -l conflict-exit-code -d 'Exit status for a busy lock, 0 to 255; default 75' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l ttl -d 'How long etcd keeps the lock for a dlock that it cannot hear; default 30s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -s k -l kill-after -d 'How long the command may take to end when it is told to, before it is killed' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l signal -d 'Signal that tells the command to end; default TERM' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l slots -d 'Let so many hold the lock at once, 1 to 1000' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l min-hold -d 'Keep the lock at least for so long, counted by etcd from the moment that it was taken' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l max-hold -d 'Stop the command after so long, then end with status 124' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l once-per -d 'Start at most once in this time on all hosts together, counted by etcd' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l supersede -d 'Send away those who wait already: the newest request wins' -r -f -a "waiters\t''
holder\t''"
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l note -d 'Text that others see while they wait for the lock' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l report -d 'Write at the end what became of it, as a JSON object in this file' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l metrics -d 'Add at the end to the metrics in this file, for the textfile collector of Prometheus\' node exporter' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l endpoints -d 'Members of the etcd cluster, separated by commas' -r -f -a "(__fish_print_hostnames)"
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l cacert -d 'Trust the certificate authorities in this PEM file instead of the system\'s' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l cert -d 'Client certificate, a PEM file; needs --key' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l key -d 'Private key of the client certificate, a PEM file; needs --cert' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l user -d 'etcd user' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l password-file -d 'File that holds the user\'s password; one newline at its end is ignored' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l prefix -d 'Where dlock\'s keys begin in etcd' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l connect-timeout -d 'How long to try to reach etcd before giving up; default 10s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l config -d 'Configuration file' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l log-format -d 'Form of the messages on stderr, text or json; default text' -r -f -a "text\t''
json\t''"
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l until-eof -d 'Hold the lock until standard input is at its end'
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l background -d 'Come back when the lock is held, and hold it in the background'
complete -c dlock -n "__fish_dlock_using_subcommand hold" -l json -d 'Print a JSON object instead of shell variables'
complete -c dlock -n "__fish_dlock_using_subcommand hold" -s n -l no-wait -d 'If the lock is busy, end at once'
complete -c dlock -n "__fish_dlock_using_subcommand hold" -s s -l shared -d 'Hold the lock beside others that share it, but not beside those that do not'
complete -c dlock -n "__fish_dlock_using_subcommand hold" -s v -l verbose -d 'Say more: what is waited for; twice: every step'
complete -c dlock -n "__fish_dlock_using_subcommand hold" -s q -l quiet -d 'Say errors only'
complete -c dlock -n "__fish_dlock_using_subcommand hold" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c dlock -n "__fish_dlock_using_subcommand release" -l endpoints -d 'Members of the etcd cluster, separated by commas' -r -f -a "(__fish_print_hostnames)"
complete -c dlock -n "__fish_dlock_using_subcommand release" -l cacert -d 'Trust the certificate authorities in this PEM file instead of the system\'s' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand release" -l cert -d 'Client certificate, a PEM file; needs --key' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand release" -l key -d 'Private key of the client certificate, a PEM file; needs --cert' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand release" -l user -d 'etcd user' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand release" -l password-file -d 'File that holds the user\'s password; one newline at its end is ignored' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand release" -l prefix -d 'Where dlock\'s keys begin in etcd' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand release" -l connect-timeout -d 'How long to try to reach etcd before giving up; default 10s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand release" -l config -d 'Configuration file' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand release" -l log-format -d 'Form of the messages on stderr, text or json; default text' -r -f -a "text\t''
json\t''"
complete -c dlock -n "__fish_dlock_using_subcommand release" -s v -l verbose -d 'Say more: what is waited for; twice: every step'
complete -c dlock -n "__fish_dlock_using_subcommand release" -s q -l quiet -d 'Say errors only'
complete -c dlock -n "__fish_dlock_using_subcommand release" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l local -d 'Use the locks of this machine alone, in files instead of etcd' -r -f -a "(__fish_complete_directories)"
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l endpoints -d 'Members of the etcd cluster, separated by commas' -r -f -a "(__fish_print_hostnames)"
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l cacert -d 'Trust the certificate authorities in this PEM file instead of the system\'s' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l cert -d 'Client certificate, a PEM file; needs --key' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l key -d 'Private key of the client certificate, a PEM file; needs --cert' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l user -d 'etcd user' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l password-file -d 'File that holds the user\'s password; one newline at its end is ignored' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l prefix -d 'Where dlock\'s keys begin in etcd' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l connect-timeout -d 'How long to try to reach etcd before giving up; default 10s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l config -d 'Configuration file' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l log-format -d 'Form of the messages on stderr, text or json; default text' -r -f -a "text\t''
json\t''"
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l json -d 'Print JSON, one lock in a line'
complete -c dlock -n "__fish_dlock_using_subcommand ls" -l watch -d 'Go on, and show every change'
complete -c dlock -n "__fish_dlock_using_subcommand ls" -s v -l verbose -d 'Say more: what is waited for; twice: every step'
complete -c dlock -n "__fish_dlock_using_subcommand ls" -s q -l quiet -d 'Say errors only'
complete -c dlock -n "__fish_dlock_using_subcommand ls" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c dlock -n "__fish_dlock_using_subcommand status" -l local -d 'Use the locks of this machine alone, in files instead of etcd' -r -f -a "(__fish_complete_directories)"
complete -c dlock -n "__fish_dlock_using_subcommand status" -l endpoints -d 'Members of the etcd cluster, separated by commas' -r -f -a "(__fish_print_hostnames)"
complete -c dlock -n "__fish_dlock_using_subcommand status" -l cacert -d 'Trust the certificate authorities in this PEM file instead of the system\'s' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand status" -l cert -d 'Client certificate, a PEM file; needs --key' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand status" -l key -d 'Private key of the client certificate, a PEM file; needs --cert' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand status" -l user -d 'etcd user' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand status" -l password-file -d 'File that holds the user\'s password; one newline at its end is ignored' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand status" -l prefix -d 'Where dlock\'s keys begin in etcd' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand status" -l connect-timeout -d 'How long to try to reach etcd before giving up; default 10s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand status" -l config -d 'Configuration file' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand status" -l log-format -d 'Form of the messages on stderr, text or json; default text' -r -f -a "text\t''
json\t''"
complete -c dlock -n "__fish_dlock_using_subcommand status" -l held -d 'Say nothing, and end with 0 if somebody has the lock, with 1 if it is free'
complete -c dlock -n "__fish_dlock_using_subcommand status" -l json -d 'Print JSON, one lock in a line'
complete -c dlock -n "__fish_dlock_using_subcommand status" -l watch -d 'Go on, and show every change'
complete -c dlock -n "__fish_dlock_using_subcommand status" -s v -l verbose -d 'Say more: what is waited for; twice: every step'
complete -c dlock -n "__fish_dlock_using_subcommand status" -s q -l quiet -d 'Say errors only'
complete -c dlock -n "__fish_dlock_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c dlock -n "__fish_dlock_using_subcommand check" -l name -d 'Name of the lock; default `DLOCK_NAME`' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand check" -l token -d 'Fencing token of its holder; default `DLOCK_FENCING_TOKEN`' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand check" -l local -d 'Use the locks of this machine alone, in files instead of etcd' -r -f -a "(__fish_complete_directories)"
complete -c dlock -n "__fish_dlock_using_subcommand check" -l endpoints -d 'Members of the etcd cluster, separated by commas' -r -f -a "(__fish_print_hostnames)"
complete -c dlock -n "__fish_dlock_using_subcommand check" -l cacert -d 'Trust the certificate authorities in this PEM file instead of the system\'s' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand check" -l cert -d 'Client certificate, a PEM file; needs --key' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand check" -l key -d 'Private key of the client certificate, a PEM file; needs --cert' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand check" -l user -d 'etcd user' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand check" -l password-file -d 'File that holds the user\'s password; one newline at its end is ignored' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand check" -l prefix -d 'Where dlock\'s keys begin in etcd' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand check" -l connect-timeout -d 'How long to try to reach etcd before giving up; default 10s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand check" -l config -d 'Configuration file' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand check" -l log-format -d 'Form of the messages on stderr, text or json; default text' -r -f -a "text\t''
json\t''"
complete -c dlock -n "__fish_dlock_using_subcommand check" -s v -l verbose -d 'Say more: what is waited for; twice: every step'
complete -c dlock -n "__fish_dlock_using_subcommand check" -s q -l quiet -d 'Say errors only'
complete -c dlock -n "__fish_dlock_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c dlock -n "__fish_dlock_using_subcommand break" -l token -d 'Token of who has to go, as `dlock status` shows it' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand break" -l reason -d 'Text that the other one is told' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand break" -s w -l wait -d 'How long to wait until the other one has gone; default 30s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand break" -l local -d 'Refused: only in etcd can somebody be sent away' -r
complete -c dlock -n "__fish_dlock_using_subcommand break" -l endpoints -d 'Members of the etcd cluster, separated by commas' -r -f -a "(__fish_print_hostnames)"
complete -c dlock -n "__fish_dlock_using_subcommand break" -l cacert -d 'Trust the certificate authorities in this PEM file instead of the system\'s' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand break" -l cert -d 'Client certificate, a PEM file; needs --key' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand break" -l key -d 'Private key of the client certificate, a PEM file; needs --cert' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand break" -l user -d 'etcd user' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand break" -l password-file -d 'File that holds the user\'s password; one newline at its end is ignored' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand break" -l prefix -d 'Where dlock\'s keys begin in etcd' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand break" -l connect-timeout -d 'How long to try to reach etcd before giving up; default 10s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand break" -l config -d 'Configuration file' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand break" -l log-format -d 'Form of the messages on stderr, text or json; default text' -r -f -a "text\t''
json\t''"
complete -c dlock -n "__fish_dlock_using_subcommand break" -l yes -d 'Do not ask whether this is meant'
complete -c dlock -n "__fish_dlock_using_subcommand break" -l now -d 'Take the lock away at once instead of asking its holder to give it back'
complete -c dlock -n "__fish_dlock_using_subcommand break" -s v -l verbose -d 'Say more: what is waited for; twice: every step'
complete -c dlock -n "__fish_dlock_using_subcommand break" -s q -l quiet -d 'Say errors only'
complete -c dlock -n "__fish_dlock_using_subcommand break" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l ttl -d 'The TTL to judge by, as dlock run has it; default 30s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -s k -l kill-after -d 'The grace to judge by, as dlock run has it; default 5s, or a fifth of the TTL if that is less' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l endpoints -d 'Members of the etcd cluster, separated by commas' -r -f -a "(__fish_print_hostnames)"
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l cacert -d 'Trust the certificate authorities in this PEM file instead of the system\'s' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l cert -d 'Client certificate, a PEM file; needs --key' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l key -d 'Private key of the client certificate, a PEM file; needs --cert' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l user -d 'etcd user' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l password-file -d 'File that holds the user\'s password; one newline at its end is ignored' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l prefix -d 'Where dlock\'s keys begin in etcd' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l connect-timeout -d 'How long to try to reach etcd before giving up; default 10s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l config -d 'Configuration file' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l log-format -d 'Form of the messages on stderr, text or json; default text' -r -f -a "text\t''
json\t''"
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -l json -d 'Print one JSON object instead of a table'
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -s v -l verbose -d 'Say more: what is waited for; twice: every step'
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -s q -l quiet -d 'Say errors only'
complete -c dlock -n "__fish_dlock_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l endpoints -d 'Members of the etcd cluster, separated by commas' -r -f -a "(__fish_print_hostnames)"
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l cacert -d 'Trust the certificate authorities in this PEM file instead of the system\'s' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l cert -d 'Client certificate, a PEM file; needs --key' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l key -d 'Private key of the client certificate, a PEM file; needs --cert' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l user -d 'etcd user' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l password-file -d 'File that holds the user\'s password; one newline at its end is ignored' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l prefix -d 'Where dlock\'s keys begin in etcd' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l connect-timeout -d 'How long to try to reach etcd before giving up; default 10s' -r -f
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l config -d 'Configuration file' -r -F
complete -c dlock -n "__fish_dlock_using_subcommand completions" -l log-format -d 'Form of the messages on stderr, text or json; default text' -r -f -a "text\t''
json\t''"
complete -c dlock -n "__fish_dlock_using_subcommand completions" -s v -l verbose -d 'Say more: what is waited for; twice: every step'
complete -c dlock -n "__fish_dlock_using_subcommand completions" -s q -l quiet -d 'Say errors only'
complete -c dlock -n "__fish_dlock_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
