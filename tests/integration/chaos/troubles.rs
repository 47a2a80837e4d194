//! When something was wrong that nobody's own processes are to blame for: members that were down, ways that were cut.
//! It must not know who suffered from it.

use std::time::Duration;

/// Something that was wrong for a time.
#[derive(Debug)]
struct Trouble {
    from: Duration,
    /// Nothing of it is left from then on; open while it lasts.
    to: Option<Duration>,
    /// The host on whose ways it was; nobody's own: the members'.
    host: Option<usize>,
    /// Over at once, such as a reset: who is quick has made it good again.
    brief: bool,
}

/// All that was wrong so far.
#[derive(Debug, Default)]
pub(super) struct Troubles(Vec<Trouble>);

impl Troubles {
    pub(super) fn begin(&mut self, from: Duration, host: Option<usize>, brief: bool) {
        self.0.push(Trouble {
            from,
            to: None,
            host,
            brief,
        });
    }

    /// The trouble that has begun is over at this moment.
    pub(super) fn end(&mut self, at: Duration) {
        for trouble in &mut self.0 {
            trouble.to.get_or_insert(at);
        }
    }

    /// Whether something lasting was wrong for this host at any time between these moments.
    pub(super) fn lasted(&self, host: usize, from: Duration, to: Duration) -> bool {
        self.any(host, from, to, |trouble| !trouble.brief)
    }

    /// The same, with what was over at once.
    pub(super) fn touched(&self, host: usize, from: Duration, to: Duration) -> bool {
        self.any(host, from, to, |_| true)
    }

    fn any(
        &self,
        host: usize,
        from: Duration,
        to: Duration,
        of: impl Fn(&Trouble) -> bool,
    ) -> bool {
        self.0.iter().any(|trouble| {
            let meets = trouble.from <= to && trouble.to.is_none_or(|end| end >= from);
            meets && trouble.host.is_none_or(|it| it == host) && of(trouble)
        })
    }
}
