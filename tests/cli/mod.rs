//! The real programs, driven as an operator drives them, on an appliance in a temporary directory.
//!
//! They wait for services most of the time: with `--test-threads 10` they take a good minute, with as many as there are
//! processors several. `QX_TEST_KEEP=1` keeps the directories of tests that fail.

mod adopt;
mod capabilities;
mod clock;
mod confined;
mod console;
mod data;
mod doctor;
mod environment;
mod failing;
mod golden;
mod good;
mod inhibit;
mod killed;
mod manager;
mod media;
mod postgres;
mod preflight;
mod refused;
mod rot;
mod scripts;
mod servers;
mod services;
mod sources;
mod sqlite;
mod supervised;
mod surroundings;
mod text;
mod truth;
mod updater;
mod wall;
mod watch;
mod withdrawn;
