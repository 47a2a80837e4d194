//! A newer request sends the older ones away, whatever gets in the way of asking them.
//! It must not know how a place is asked; `sharing.rs` proves who has to go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::{Dlock, Etcd, Link, hold, let_pass, unique};

/// "--supersede=holder: the holder is asked to stop": again, when its record has changed in the moment of asking.
#[test]
fn a_holder_whose_record_changes_meanwhile_is_asked_again() {
    let etcd = Etcd::shared();
    let name = unique("changes");
    let mut holder = hold(Dlock::on(etcd), &[], &name);
    let place = etcd.queue(&name).remove(0);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Many times in the time between the newer one's look and its asking.
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    etcd.ctl(&["put", "--ignore-lease", &place.key, &place.value]);
                }
            });
        }
        let link = Link::far(etcd.port(), Duration::from_millis(150));
        let mut newer = Dlock::at(&link.endpoint())
            .run(["--supersede=holder", &name, "echo", "on"])
            .start();
        etcd.queue_of(&name, 2);
        let_pass(Duration::from_secs(2));
        over.store(true, Ordering::SeqCst);
        holder.wait().expect_code(121);
        newer.wait().expect_code(0).expect_stdout("on\n");
    });
}
