//! The recipient of a signal that dlock received: the command, its whole process group, or none because they have it.
//! It must not know a signal's number, nor how one is sent.

/// The sender of a signal that dlock received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The terminal, which sends to every process of the foreground process group.
    Terminal,
    /// A process that descends from the command, or the command itself.
    Descendant,
    /// Another process, or the kernel, to dlock alone.
    Other,
}

/// The process group of the command, relative to dlock's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandGroup {
    /// The group that both were started in.
    Shared,
    /// Another group of the same session, as timeout(1) makes it.
    Own,
    /// The command has left the session, and so the terminal.
    OtherSession,
}

/// A recipient of the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// None: the command has the signal already, or it is not meant for it.
    Nobody,
    /// The command alone.
    Command,
    /// The process group of the command.
    Group,
}

/// Decides who gets a signal. `continues` is true for SIGCONT.
///
/// A descendant sends to dlock when it sends to its whole process group (`kill 0`), which reached the command, too. A
/// signal from it to the process id of dlock alone looks the same, and is rarer.
pub const fn recipient(sender: Sender, group: CommandGroup, continues: bool) -> Recipient {
    match (sender, group) {
        (Sender::Terminal | Sender::Descendant, CommandGroup::Shared)
        | (Sender::Terminal, CommandGroup::OtherSession) => Recipient::Nobody,
        (Sender::Terminal, CommandGroup::Own) => Recipient::Group,
        // A shell continues only the process group that it knows.
        (Sender::Other, CommandGroup::Own) if continues => Recipient::Group,
        (Sender::Descendant | Sender::Other, _) => Recipient::Command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: [CommandGroup; 3] = [
        CommandGroup::Shared,
        CommandGroup::Own,
        CommandGroup::OtherSession,
    ];

    #[test]
    fn a_signal_that_the_group_received_is_not_sent_again() {
        for sender in [Sender::Terminal, Sender::Descendant] {
            for continues in [false, true] {
                let answer = recipient(sender, CommandGroup::Shared, continues);
                assert_eq!(answer, Recipient::Nobody, "{sender:?}");
            }
        }
    }

    #[test]
    fn the_terminal_reaches_a_group_of_the_same_session_and_no_other() {
        let to = |group| recipient(Sender::Terminal, group, false);
        assert_eq!(
            GROUPS.map(to),
            [Recipient::Nobody, Recipient::Group, Recipient::Nobody]
        );
    }

    #[test]
    fn a_signal_to_dlock_reaches_the_command_in_any_group() {
        for group in GROUPS {
            let answer = recipient(Sender::Other, group, false);
            assert_eq!(answer, Recipient::Command, "{group:?}");
        }
        let answer = recipient(Sender::Other, CommandGroup::Own, true);
        assert_eq!(answer, Recipient::Group);
    }
}
