//! The states of a model's engine and what may happen in each.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a model's engine is. The room's doc draws the transitions and says what holds in each state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No process. Started when wanted.
    Cold,
    /// Launched ahead of its turn, and held before its first use of a GPU.
    Preparing,
    /// Launched, and not held; until its trial has passed.
    Starting,
    /// Its memory is where it computes; it answers.
    Resident,
    /// On its way out.
    SwappingOut,
    /// The process lives, its resources are free (but for what it takes while out).
    Out,
    /// On its way in; its resources are reserved.
    SwappingIn,
    /// Being stopped for good or to free what it takes while out.
    Stopping,
    /// Given up, with a reason. Only an operator's ask tries again.
    Failed,
}

impl State {
    /// The name in `status` and metrics.
    pub fn name(self) -> &'static str {
        match self {
            State::Cold => "cold",
            State::Preparing => "preparing",
            State::Starting => "starting",
            State::Resident => "resident",
            State::SwappingOut => "swapping_out",
            State::Out => "out",
            State::SwappingIn => "swapping_in",
            State::Stopping => "stopping",
            State::Failed => "failed",
        }
    }

    /// Whether a start or a swap-in may begin.
    pub fn can_come_in(self) -> bool {
        matches!(self, State::Cold | State::Preparing | State::Out)
    }

    /// Whether a swap-out may begin.
    pub fn can_go_out(self) -> bool {
        self == State::Resident
    }

    /// Whether it may be stopped.
    pub fn can_stop(self) -> bool {
        matches!(self, State::Resident | State::Out | State::Preparing)
    }

    /// Whether something was asked of the engine and has not been reported done. One that is prepared waits.
    pub fn is_moving(self) -> bool {
        matches!(self, State::Starting | State::SwappingOut | State::SwappingIn | State::Stopping)
    }

    /// Whether a process is expected to live.
    pub fn has_process(self) -> bool {
        !matches!(self, State::Cold | State::Failed)
    }

    /// Whether `next` is an arrow of the diagram.
    pub fn can_become(self, next: State) -> bool {
        use State::*;
        match self {
            Cold => matches!(next, Preparing | Starting | Failed),
            Preparing => matches!(next, Starting | Stopping | Cold),
            Starting => matches!(next, Resident | Cold | Failed),
            Resident => matches!(next, SwappingOut | Stopping | Cold),
            SwappingOut => matches!(next, Out | Resident | Cold),
            Out => matches!(next, SwappingIn | SwappingOut | Stopping | Cold),
            SwappingIn => matches!(next, Resident | Out | Cold),
            Stopping => matches!(next, Cold),
            Failed => matches!(next, Cold),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
