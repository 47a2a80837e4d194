//! The end-to-end tests: the built program, real processes and a real etcd.
//! They must not know how the program is built inside; the command line and the keys in etcd are all they see.

mod chaos;
mod cli;
mod cluster;
mod command;
mod doctor;
mod fake;
mod fence;
mod guard;
mod handover;
mod harness;
mod idle;
mod loss;
mod queue;
mod security;
mod sharing;
mod support;
mod survivors;
