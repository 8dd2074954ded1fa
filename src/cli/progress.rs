//! How the engines' start is shown: a line with a spinner a model on a terminal, plain lines in a batch log.

use crate::{
    daemon::{ModelRow, Stage},
    scheduler::State,
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

/// Shows the start of every model; made once, told of each change.
pub struct Progress {
    begun: Instant,
    screen: Option<MultiProgress>,
    lines: Vec<Line>,
    quiet: bool,
}

struct Line {
    shown: (State, Stage),
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Nothing is shown yet. `quiet` shows nothing but failures.
    pub fn new(models: usize, quiet: bool) -> Self {
        let screen = (stderr().is_terminal() && !quiet).then(MultiProgress::new);
        let style = ProgressStyle::with_template("{spinner} {prefix:16} {elapsed:>5} {wide_msg}")
            .expect("a constant template");
        let line = |_| Line {
            shown: (State::Cold, Stage::Idle),
            bar: screen.as_ref().map(|screen| {
                let bar = screen.add(ProgressBar::new_spinner().with_style(style.clone()));
                bar.enable_steady_tick(Duration::from_millis(100));
                bar
            }),
        };
        let lines = (0..models).map(line).collect();
        Progress { begun: Instant::now(), screen, lines, quiet }
    }

    /// Shows what changed.
    pub fn update(&mut self, models: &[ModelRow]) {
        let seconds = self.begun.elapsed().as_secs_f64();
        for (line, model) in self.lines.iter_mut().zip(models) {
            let now = (model.state, model.stage);
            if let Some(bar) = &line.bar {
                bar.set_prefix(model.name.clone());
                bar.set_message(sentence(model));
                if settled(model) && !bar.is_finished() {
                    bar.finish();
                }
            }
            if now == line.shown {
                continue;
            }
            line.shown = now;
            if line.bar.is_none() && (!self.quiet || model.state == State::Failed) {
                eprintln!("swapserve: {seconds:7.1} s  {:16} {}", model.name, sentence(model));
            }
        }
    }

    /// Takes the spinners away; what was shown stays.
    pub fn finish(self) {
        if self.screen.is_some() {
            self.lines.iter().filter_map(|line| line.bar.as_ref()).for_each(|bar| bar.abandon());
        }
    }
}

/// Whether its start is over, well or not.
pub fn settled(model: &ModelRow) -> bool {
    model.state == State::Failed
        || stopped_again(model)
        || (model.stage == Stage::Ready
            && !matches!(model.state, State::Cold | State::Preparing | State::Starting))
}

/// Whether it was started and then stopped to make room: it starts again when it is asked for.
fn stopped_again(model: &ModelRow) -> bool {
    model.state == State::Cold && model.cold_start_s.is_some()
}

fn sentence(model: &ModelRow) -> String {
    let mechanism = model.mechanism.map_or(String::new(), |m| format!(", swapped by {m}"));
    match (model.state, model.stage) {
        (State::Failed, _) => format!("failed: {}", model.note),
        (State::Cold, _) if stopped_again(model) => {
            "stopped for lack of memory; starts when asked for".to_owned()
        }
        (State::Cold, Stage::Warming) => "waits for its turn to start; its weights are being read".to_owned(),
        (State::Cold, _) => "waits for its turn to start".to_owned(),
        (_, Stage::Idle | Stage::Waiting | Stage::Warming) => "starting".to_owned(),
        (_, Stage::Importing) => "launched ahead of its turn; imports".to_owned(),
        (_, Stage::Held) => "has imported; waits for its turn on the GPU".to_owned(),
        (_, Stage::Launched) => "launched".to_owned(),
        (_, Stage::Loading) => format!("loading: {}", model.note),
        (_, Stage::Listening) => "listens; waiting for its first answer".to_owned(),
        (_, Stage::Trial) => "answered; trying how it can be swapped".to_owned(),
        (state, Stage::Ready) => {
            let start = model.cold_start_s.map_or(String::new(), |s| format!(", started in {s:.1} s"));
            format!("{}{start}{mechanism}", state.name().replace('_', " "))
        }
    }
}
