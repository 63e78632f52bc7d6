//! Following a job: a line for each step, in place on a terminal, until the job ends.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::client::{Client, record};
use super::failure::{Failure, Result};
use super::stream::{Heard, Stream};
use super::units::{bytes, now, printable, stretch, word};
use crate::model::{Id, Job, Progress, Step, StepState};

/// How often the job is looked at where nothing is heard of it: steps that go well say nothing.
const LOOK: Duration = Duration::from_millis(400);
/// Looks in a row that go wrong, each with patience of its own.
const MAX_MISSED: usize = 30;
const MISSED: Duration = Duration::from_secs(1);
/// Columns of a terminal that does not say.
const COLUMNS: usize = 80;
/// Things heard that wait.
const MAX_WAITING: usize = 16;

/// Looks at a job until it has ended, and has `show` see each look.
pub(super) fn follow(
    client: &Arc<Client>,
    id: Id,
    mut show: impl FnMut(&Job) -> io::Result<()>,
) -> Result<Job> {
    let heard = listen(client, id)?;
    let mut missed = 0;
    loop {
        match client.get(&format!("/v1/jobs/{id}"), &Vec::new()).and_then(record::<Job>) {
            Ok(job) => {
                missed = 0;
                show(&job).map_err(|error| Failure::output(&error))?;
                if job.state.ended() {
                    return Ok(job);
                }
            }
            Err(failure) if failure.may_pass() && missed < MAX_MISSED => {
                missed += 1;
                std::thread::sleep(MISSED);
            }
            Err(mut failure) => {
                failure.text +=
                    &format!("\n  job: {id}\n  do: it goes on; follow it: uvm-controller job watch {id}");
                return Err(failure);
            }
        }
        wait(&heard);
    }
}

/// Listens to the job's events on a thread: the job's end is seen at once. Who cannot listen looks.
fn listen(client: &Arc<Client>, id: Id) -> Result<Receiver<Heard>> {
    let (sender, receiver) = sync_channel(MAX_WAITING);
    let mut stream = Stream::new(Arc::clone(client), format!("/v1/jobs/{id}/events"), Vec::new(), None);
    let thread = std::thread::Builder::new().name("events".to_owned()).spawn(move || {
        while let Ok(heard) = stream.next() {
            if sender.send(heard).is_err() {
                return;
            }
        }
    });
    match thread {
        Ok(_) => Ok(receiver),
        Err(error) => Err(Failure::no(format!("starting a thread: {error}"))),
    }
}

fn wait(heard: &Receiver<Heard>) {
    match heard.recv_timeout(LOOK) {
        // One look serves all that came.
        Ok(_) => while heard.try_recv().is_ok() {},
        Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
    }
}

/// Where a job's steps are shown.
pub(super) struct Board<W> {
    out: W,
    /// Columns of the terminal; `None` where it is none.
    columns: Option<usize>,
    states: Vec<StepState>,
    /// What the last line of a running step said, but for what changes all the time.
    said: String,
}

impl Board<io::Stdout> {
    pub(super) fn new() -> Self {
        let out = io::stdout();
        // A terminal that does not know its size has none.
        let size = || rustix::termios::tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_col > 0);
        let columns = out.is_terminal().then(|| size().map_or(COLUMNS, |size| usize::from(size.ws_col)));
        Self::on(out, columns)
    }
}

impl<W: Write> Board<W> {
    fn on(out: W, columns: Option<usize>) -> Self {
        Self { out, columns, states: Vec::new(), said: String::new() }
    }

    /// Shows what is new: a line for each step that came to its end, and one for the step that goes on.
    pub(super) fn show(&mut self, job: &Job) -> io::Result<()> {
        let width = job.steps.iter().map(|step| step.name.chars().count()).max().unwrap_or_default();
        for (index, step) in job.steps.iter().enumerate() {
            let before = self.states.get(index).copied().unwrap_or(StepState::Pending);
            let begun = (before, step.state) != (StepState::Pending, StepState::Undone);
            if step.state != before && begun && is_settled(step.state) {
                let text = format!("{}{}", head(job, index, width), outcome(step));
                self.line(text.trim_end())?;
            }
        }
        self.states = job.steps.iter().map(|step| step.state).collect();
        let at =
            job.steps.iter().position(|step| matches!(step.state, StepState::Running | StepState::Undoing));
        if let Some(index) = at.filter(|_| !job.state.ended()) {
            let step = &job.steps[index];
            let text = format!("{}{}", head(job, index, width), going(step, job.progress.as_ref()));
            self.going(text.trim_end(), mark(index, step, job.progress.as_ref()))?;
        }
        if job.state.ended() {
            let took = job.ended_at.map(|end| stretch(end.saturating_sub(job.created_at)));
            let text = format!("{} {} in {}", word(&job.kind), word(&job.state), took.unwrap_or_default());
            self.line(text.trim_end())?;
        }
        self.out.flush()
    }

    fn line(&mut self, text: &str) -> io::Result<()> {
        self.said.clear();
        match self.columns {
            Some(_) => writeln!(self.out, "\r{}\x1b[K", one_line(text)),
            None => writeln!(self.out, "{}", one_line(text)),
        }
    }

    fn going(&mut self, text: &str, mark: String) -> io::Result<()> {
        match self.columns {
            Some(columns) => {
                // A line that wraps could not be written over.
                let text: String = one_line(text).chars().take(columns.saturating_sub(1)).collect();
                write!(self.out, "\r{text}\x1b[K")
            }
            None if self.said == mark => Ok(()),
            None => {
                self.said = mark;
                writeln!(self.out, "{}", one_line(text))
            }
        }
    }
}

fn one_line(text: &str) -> String {
    printable(text).replace('\n', " ")
}

fn is_settled(state: StepState) -> bool {
    matches!(state, StepState::Done | StepState::Failed | StepState::Undone)
}

fn head(job: &Job, index: usize, width: usize) -> String {
    let (step, count) = (&job.steps[index], job.steps.len());
    let digits = count.to_string().len();
    format!("[{:>digits$}/{count}] {:<width$}  {:<8}", index + 1, step.name, word(&step.state))
}

/// How a step ended.
fn outcome(step: &Step) -> String {
    let took = step.started_at.zip(step.ended_at).map(|(from, to)| stretch(to.saturating_sub(from)));
    let words = if step.state == StepState::Done { "" } else { step.message.as_str() };
    format!("{:>6}  {words}", took.unwrap_or_default())
}

/// How a step goes on.
fn going(step: &Step, progress: Option<&Progress>) -> String {
    let since = step.started_at.map(|from| stretch(now().saturating_sub(from))).unwrap_or_default();
    let attempt = if step.attempts > 1 { format!("  attempt {}", step.attempts) } else { String::new() };
    let words = match progress.filter(|_| step.state == StepState::Running) {
        Some(progress) => how_far(progress),
        None => step.message.clone(),
    };
    format!("{since:>6}{attempt}  {words}")
}

fn how_far(progress: &Progress) -> String {
    let mut text = format!("{}  {}", progress.step, bytes(progress.bytes_done));
    if let Some(total) = progress.bytes_total {
        text += &format!(" of {}", bytes(total));
    }
    if let Some(percent) = percent(progress) {
        text += &format!("  {percent}%");
    }
    if progress.bytes_per_second > 0 {
        text += &format!("  {}/s", bytes(progress.bytes_per_second));
    }
    text
}

fn percent(progress: &Progress) -> Option<u64> {
    let total = progress.bytes_total.filter(|total| *total > 0)?;
    let done = u128::from(progress.bytes_done.min(total));
    u64::try_from(done * 100 / u128::from(total)).ok()
}

/// What makes another line worth it where lines cannot be written over.
fn mark(index: usize, step: &Step, progress: Option<&Progress>) -> String {
    let (at, tenth) = match progress {
        Some(progress) => (progress.step.as_str(), percent(progress).unwrap_or_default() / 10),
        None => (step.message.as_str(), 0),
    };
    format!("{index} {} {} {at} {tenth}", word(&step.state), step.attempts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{JobKind, JobState};

    fn step(name: &str, state: StepState) -> Step {
        let (started_at, ended_at) = match state {
            StepState::Pending => (None, None),
            StepState::Running | StepState::Undoing => (Some(now()), None),
            _ => (Some(1_000), Some(2_500)),
        };
        Step {
            name: name.to_owned(),
            description: String::new(),
            state,
            attempts: 1,
            deadline_seconds: 60,
            started_at,
            ended_at,
            message: String::new(),
        }
    }

    fn job(states: &[StepState], state: JobState) -> Job {
        let names = ["create-volume", "provision", "start"];
        Job {
            id: Id::default(),
            kind: JobKind::CreateInstance,
            project: None,
            subject: "instances/1".to_owned(),
            node: None,
            state,
            cancel_requested: false,
            steps: names.iter().zip(states).map(|(name, state)| step(name, *state)).collect(),
            progress: None,
            problem: None,
            created_at: 1_000,
            ended_at: state.ended().then_some(13_000),
        }
    }

    fn shown(columns: Option<usize>, jobs: &[Job]) -> String {
        let mut out = Vec::new();
        let mut board = Board::on(&mut out, columns);
        jobs.iter().for_each(|job| board.show(job).unwrap());
        String::from_utf8(out).unwrap()
    }

    fn with_progress(done: u64) -> Job {
        use StepState::{Done, Pending, Running};
        let progress = Progress {
            step: "write-image".to_owned(),
            bytes_done: done << 20,
            bytes_total: Some(512 << 20),
            bytes_per_second: 40 << 20,
        };
        Job { progress: Some(progress), ..job(&[Done, Running, Pending], JobState::Running) }
    }

    #[test]
    fn each_step_has_its_line_and_the_end_has_one() {
        use StepState::{Done, Pending, Running};
        let text = shown(
            None,
            &[
                job(&[Running, Pending, Pending], JobState::Running),
                with_progress(0),
                with_progress(1),
                with_progress(256),
                job(&[Done, Done, Done], JobState::Succeeded),
            ],
        );
        let lines: Vec<&str> = text.lines().collect();
        let expected = [
            "[1/3] create-volume  running",
            "[1/3] create-volume  done      1.5s",
            "[2/3] provision      running   0.0s  write-image  0B of 512.0MiB  0%  40.0MiB/s",
            "[2/3] provision      running   0.0s  write-image  256.0MiB of 512.0MiB  50%  40.0MiB/s",
            "[2/3] provision      done      1.5s",
            "[3/3] start          done      1.5s",
            "create-instance succeeded in 12.0s",
        ];
        assert_eq!(lines.len(), expected.len(), "{text}");
        for (line, expected) in lines.iter().zip(expected) {
            // How long a running step has been at it is the clock's affair.
            let untimed = |text: &str| text.replace("0.1s", "0.0s");
            assert!(untimed(line).starts_with(expected), "{line}");
        }
    }

    #[test]
    fn a_failure_is_shown_with_its_words_and_what_was_never_begun_is_not() {
        use StepState::{Done, Failed, Pending, Undone};
        let mut failing = job(&[Done, Failed, Pending], JobState::Undoing);
        failing.steps[1].message = "no\x1b[31m space".to_owned();
        let text = shown(None, &[failing, job(&[Undone, Undone, Undone], JobState::Failed)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "[2/3] provision      failed    1.5s  no [31m space");
        assert_eq!(lines[2], "[1/3] create-volume  undone    1.5s");
        assert_eq!(lines[4], "create-instance failed in 12.0s");
        assert_eq!(lines.len(), 5, "{text}");
    }

    #[test]
    fn on_a_terminal_a_line_is_written_over_and_never_wraps() {
        use StepState::Done;
        let text = shown(
            Some(40),
            &[with_progress(1), with_progress(2), job(&[Done, Done, Done], JobState::Succeeded)],
        );
        let written: Vec<&str> = text.split('\r').collect();
        let over: Vec<&&str> = written.iter().filter(|part| part.contains("running")).collect();
        assert_eq!(over.len(), 2, "{text:?}");
        for part in over {
            assert_eq!(part.strip_suffix("\x1b[K").unwrap().chars().count(), 39, "{part:?}");
        }
        assert!(text.contains("\r[2/3] provision      done      1.5s\x1b[K\n"), "{text:?}");
    }

    #[test]
    fn a_part_is_never_more_than_the_whole() {
        let progress = |done, total| Progress { bytes_done: done, bytes_total: total, ..Progress::default() };
        assert_eq!(percent(&progress(1, None)), None);
        assert_eq!(percent(&progress(1, Some(0))), None);
        assert_eq!(percent(&progress(u64::MAX, Some(u64::MAX - 1))), Some(100));
    }
}
