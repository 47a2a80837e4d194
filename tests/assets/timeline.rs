//! Draws the timeline of a loss from the durations that dlock uses, as SVG.
//! It must not know where the picture is kept.

use std::fmt::Write as _;
use std::time::Duration;

use dlock::core::heartbeat::Heartbeat;
use dlock::core::lock_delay::lock_delay;
use dlock::core::time::{Instant, LeaseTimings};

const TTL: Duration = Duration::from_secs(30);
/// The share of the TTL that etcd certainly keeps a lease, by this host's clock: "rates that differ by less than 10 %".
const CERTAIN: f64 = 0.9;

// Lengths in pixels.
const WIDTH: f64 = 767.0;
const HEIGHT: f64 = 292.0;
const MARGIN: f64 = 14.0;
/// The ends of the time axis.
const LEFT: f64 = 128.0;
const RIGHT: f64 = WIDTH - 12.0;
const PER_SECOND: f64 = 14.6;
/// Upper ends of the lanes, and their height.
const RENEWALS: f64 = 72.0;
const COMMAND: f64 = 116.0;
const LEASE: f64 = 160.0;
const NEXT: f64 = 204.0;
const BAR: f64 = 26.0;
const AXIS: f64 = 248.0;
/// The line of text below the upper end of a lane.
const BASELINE: f64 = 18.0;
/// The line of text of the deadlines.
const MOMENTS: f64 = 56.0;

const STYLE: &str = "
svg { font: 13px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; }
.card { fill: #ffffff; stroke: #8c959f; } text { fill: #1f2328; } .soft { fill: #59636e; } .axis { stroke: #8c959f; }
.good { fill: #1a7f37; } .stop { fill: #bf8700; } .bad { stroke: #cf222e; stroke-width: 2; }
.lease { fill: #0969da; } .perhaps { fill: #0969da; opacity: .45; } .delay { fill: #6e7781; }
.on { fill: #ffffff; } .line { stroke: #59636e; stroke-dasharray: 4 3; }
@media (prefers-color-scheme: dark) {
.card { fill: #161b22; stroke: #6e7681; } text { fill: #e6edf3; } .soft { fill: #9da7b3; } .axis { stroke: #6e7681; }
.good { fill: #238636; } .stop { fill: #9e6a03; } .bad { stroke: #ff7b72; } .lease { fill: #1f6feb; } .perhaps { fill: #1f6feb; }
.on { fill: #ffffff; } .line { stroke: #9da7b3; } }
";

/// The x of a moment, in seconds since the last proven renewal was sent.
fn x(seconds: f64) -> f64 {
    PER_SECOND.mul_add(seconds, LEFT)
}

/// A number without trailing zeros.
fn short(seconds: f64) -> String {
    format!("{}", (seconds * 100.0).round() / 100.0)
}

/// The send times of the renewals that fail, from the last proof until the command is told to stop.
fn failing(timings: LeaseTimings, start: Instant, stop_at: Instant) -> Vec<f64> {
    // The seed spreads the renewals of many hosts; this one leaves the interval as it is.
    let mut heartbeat = (0..10_000)
        .map(|seed| Heartbeat::new(timings, start, seed))
        .find(|heartbeat| heartbeat.due_at() == Some(start + timings.renew_interval()))
        .expect("a seed without deviation");
    let mut sent = Vec::new();
    while let Some(due_at) = heartbeat.due_at().filter(|due_at| *due_at < stop_at) {
        assert!(heartbeat.start_renewal(due_at));
        sent.push(due_at.since(start).as_secs_f64());
        heartbeat.failed(due_at + timings.renew_timeout());
    }
    sent
}

/// The elements of the picture.
struct Drawing(String);

impl Drawing {
    fn bar(&mut self, class: &str, top: f64, from: f64, to: f64, text: &str) {
        let (left, width) = (x(from), x(to) - x(from));
        self.add(&format!(
            r#"<rect class="{class}" x="{left:.1}" y="{top}" width="{width:.1}" height="{BAR}" rx="3"/>"#
        ));
        self.text("on", "middle", left + width / 2.0, top + BASELINE, text);
    }

    fn text(&mut self, class: &str, anchor: &str, x: f64, y: f64, text: &str) {
        if !text.is_empty() {
            self.add(&format!(
                r#"<text class="{class}" x="{x:.1}" y="{y}" text-anchor="{anchor}">{text}</text>"#
            ));
        }
    }

    fn add(&mut self, element: &str) {
        writeln!(self.0, "{element}").unwrap();
    }
}

/// The moments of the loss, in seconds since the last proven renewal was sent.
struct Loss {
    ttl: f64,
    grace: f64,
    renew_timeout: f64,
    failing: Vec<f64>,
    stop: f64,
    kill: f64,
    /// The earliest end of the lease by this host's clock.
    earliest: f64,
    /// The start of the next command, with clocks of equal rate.
    next: f64,
}

impl Loss {
    fn new() -> Self {
        let grace = LeaseTimings::default_grace(TTL);
        let timings = LeaseTimings::new(TTL, grace);
        let start = Instant::from_boot(Duration::from_secs(1000));
        let deadlines = timings.deadlines(start);
        let ttl = TTL.as_secs_f64();
        Self {
            ttl,
            grace: grace.as_secs_f64(),
            renew_timeout: timings.renew_timeout().as_secs_f64(),
            failing: failing(timings, start, deadlines.stop_at),
            stop: deadlines.stop_at.since(start).as_secs_f64(),
            kill: deadlines.kill_at.since(start).as_secs_f64(),
            earliest: ttl * CERTAIN,
            next: ttl + lock_delay(grace).as_secs_f64(),
        }
    }

    fn bars(&self, drawing: &mut Drawing) {
        let end = (RIGHT - LEFT) / PER_SECOND;
        let delay = format!("lock delay {} s", short(self.next - self.ttl));
        drawing.bar("good", COMMAND, 0.0, self.stop, "runs");
        drawing.bar("stop", COMMAND, self.stop, self.kill, "stopping");
        drawing.bar("lease", LEASE, 0.0, self.earliest, "certainly held");
        drawing.bar("perhaps", LEASE, self.earliest, self.ttl, "");
        drawing.bar("delay", NEXT, self.ttl, self.next, &delay);
        drawing.bar("good", NEXT, self.next, end, "runs");
        let middle = RENEWALS + BAR / 2.0;
        drawing.add(&format!(
            r#"<circle class="good" cx="{LEFT}" cy="{middle}" r="6"/>"#
        ));
        for sent in &self.failing {
            let (left, top) = (x(*sent) - 5.0, middle - 5.0);
            drawing.add(&format!(
                r#"<path class="bad" d="M{left:.1} {top}l10 10m0 -10l-10 10"/>"#
            ));
        }
    }

    fn labels(&self, drawing: &mut Drawing) {
        let title = format!(
            "etcd answers no more after a proven renewal (TTL {} s, grace {} s)",
            short(self.ttl),
            short(self.grace)
        );
        drawing.text("", "start", MARGIN, 26.0, &title);
        let lanes = [
            (RENEWALS, "renewals"),
            (COMMAND, "command"),
            (LEASE, "lease in etcd"),
            (NEXT, "next command"),
        ];
        for (top, name) in lanes {
            drawing.text("soft", "start", MARGIN, top + BASELINE, name);
        }
        let stop = format!("stop signal {} s", short(self.stop));
        drawing.text("", "end", x(self.stop) - 5.0, MOMENTS, &stop);
        let kill = format!("kill {} s", short(self.kill));
        drawing.text("", "end", x(self.kill) - 3.0, MOMENTS, &kill);
        let earliest = format!("{} s: earliest end of the lease", short(self.earliest));
        drawing.text("", "start", x(self.earliest) + 4.0, MOMENTS, &earliest);
        let crosses = format!("crosses: no answer within {} s", short(self.renew_timeout));
        drawing.text(
            "soft",
            "start",
            x(self.earliest) + 5.0,
            RENEWALS + BASELINE,
            &crosses,
        );
        drawing.text(
            "soft",
            "start",
            x(self.ttl) + 5.0,
            LEASE + BASELINE,
            "end by etcd's clock",
        );
        drawing.text("soft", "start", LEFT, NEXT + BASELINE, "waits");
    }

    fn axis(&self, drawing: &mut Drawing) {
        drawing.add(&format!(
            r#"<path class="axis" d="M{LEFT} {AXIS}H{RIGHT}"/>"#
        ));
        drawing.text("soft", "start", MARGIN, AXIS + BASELINE, "seconds");
        for seconds in (0..=40_u32).step_by(5).map(f64::from) {
            drawing.text(
                "soft",
                "middle",
                x(seconds),
                AXIS + BASELINE,
                &short(seconds),
            );
        }
        for moment in [self.stop, self.kill, self.earliest] {
            let x = x(moment);
            drawing.add(&format!(
                r#"<path class="line" d="M{x:.1} {}V{AXIS}"/>"#,
                MOMENTS + 4.0
            ));
        }
    }
}

pub(crate) fn svg() -> String {
    let loss = Loss::new();
    let mut drawing = Drawing(String::new());
    loss.bars(&mut drawing);
    loss.labels(&mut drawing);
    loss.axis(&mut drawing);
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">
<title>Timeline of a lost lock: stop signal at {} s, kill at {} s, earliest end of the lease at {} s, next command at {} s</title>
<style>{STYLE}</style>
<rect class="card" x=".5" y=".5" width="{}" height="{}" rx="8"/>
{}</svg>
"#,
        short(loss.stop),
        short(loss.kill),
        short(loss.earliest),
        short(loss.next),
        WIDTH - 1.0,
        HEIGHT - 1.0,
        drawing.0
    )
}
