//! The end-to-end tests: the built program, real processes and a real etcd.
//! They must not know the program's inner workings; they see only the command line and the keys in etcd.

mod chaos;
mod cli;
mod cluster;
mod command;
mod completion;
mod delay;
mod doctor;
mod entering;
mod examples;
mod fake;
mod fence;
mod fencing;
mod first_use;
mod guard;
mod handover;
mod harness;
mod holds;
mod idle;
mod listing;
mod load;
mod local;
mod loss;
mod marks;
mod output;
mod queue;
mod release;
mod report;
mod security;
mod service;
mod sharing;
mod signals;
mod superseding;
mod support;
mod survivors;
mod watching;
