complete -F _dlock dlock
