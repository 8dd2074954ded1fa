//! Tests of the whole room: scenarios that read as a transcript, and random histories in a world that misbehaves.

mod faults;
mod kit;
mod parking;
mod properties;
mod scenarios;
mod starting;
mod world;
