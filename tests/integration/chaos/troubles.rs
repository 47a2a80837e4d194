//! Outages that no process of a run causes: members that were down, links that were cut.
//! It must not know which runs suffered from them.

use std::time::Duration;

/// An outage.
#[derive(Debug)]
struct Trouble {
    from: Duration,
    /// The time from which no effect is left; `None` while it lasts.
    to: Option<Duration>,
    /// The host of the affected links; `None` for an outage of the members.
    host: Option<usize>,
    /// Over at once, such as a reset: a fast client has recovered already.
    brief: bool,
}

/// All outages so far.
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

    /// The current outage is over.
    pub(super) fn end(&mut self, at: Duration) {
        for trouble in &mut self.0 {
            trouble.to.get_or_insert(at);
        }
    }

    /// Whether a lasting outage affected this host at any time between these times.
    pub(super) fn lasted(&self, host: usize, from: Duration, to: Duration) -> bool {
        self.any(host, from, to, |trouble| !trouble.brief)
    }

    /// The same, with brief ones.
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
