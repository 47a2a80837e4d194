//! A newer request supersedes the older ones, also when the requests to them fail.
//! It must not know how an owner is asked; `sharing.rs` tests which owners are.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::{Dlock, Etcd, Link, hold, let_pass, unique};

/// "--supersede=holder: the holder is asked to stop": again, if its record was changed at the same time.
#[test]
fn a_holder_whose_record_changes_meanwhile_is_asked_again() {
    let etcd = Etcd::shared();
    let name = unique("changes");
    let mut holder = hold(Dlock::on(etcd), &[], &name);
    let place = etcd.queue(&name).remove(0);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Many times between the newer client's read and its request.
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
