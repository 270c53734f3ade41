//! Whoever follows an operation, at the other end of a pipe: a terminal that was stopped, a pager that nobody scrolls, a
//! connection that hangs. Telling it something never takes time; what it does not take soon enough is dropped, oldest
//! first, and it is told how much that was.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// How many bytes wait for a reader that is behind.
const MAX_WAITING: usize = 256 << 10;
/// How long it may take, at the end, to read what waits.
const LAST: Duration = Duration::from_secs(10);

/// Lines that wait for somebody.
#[derive(Debug, Default)]
pub struct Waiting {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u64,
}

/// What comes next for somebody who reads.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A line.
    Line(Vec<u8>),
    /// So many lines that are gone.
    Dropped(u64),
}

impl Waiting {
    /// A line more; the oldest ones may go.
    pub fn push(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > MAX_WAITING
            && let Some(line) = self.lines.pop_front()
        {
            self.bytes -= line.len();
            self.dropped += 1;
        }
    }

    /// The oldest that is left, after how many are not.
    pub fn pop(&mut self) -> Option<Next> {
        match std::mem::take(&mut self.dropped) {
            0 => {
                let line = self.lines.pop_front()?;
                self.bytes -= line.len();
                Some(Next::Line(line))
            }
            dropped => Some(Next::Dropped(dropped)),
        }
    }
}

/// The follower at the standard output, which whoever started us has made non-blocking (it is a pipe between the two of
/// us: a description that is shared with anybody else's terminal must not be).
pub struct Follower {
    waiting: Waiting,
    /// The rest of the line that is being sent: lines are sent whole.
    current: Vec<u8>,
    /// Says that so many lines were dropped.
    excuse: fn(u64) -> Vec<u8>,
    gone: bool,
}

impl Follower {
    /// `excuse` makes the line that says how many were dropped.
    pub fn new(excuse: fn(u64) -> Vec<u8>) -> Follower {
        Follower {
            waiting: Waiting::default(),
            current: Vec::new(),
            excuse,
            gone: false,
        }
    }

    /// Sends a line, now or later.
    pub fn send(&mut self, line: Vec<u8>) {
        if !self.gone {
            self.waiting.push(line);
            self.flush();
        }
    }

    /// Whether nothing waits.
    pub fn is_up_to_date(&mut self) -> bool {
        self.flush()
    }

    /// Sends as much as is taken; tells whether that was all.
    fn flush(&mut self) -> bool {
        while !self.gone {
            if self.current.is_empty() {
                self.current = match self.waiting.pop() {
                    Some(Next::Line(line)) => line,
                    Some(Next::Dropped(number)) => (self.excuse)(number),
                    None => return true,
                };
            }
            match rustix::io::write(io::stdout(), &self.current) {
                Ok(sent) => drop(self.current.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                // It may be the service that is being restarted.
                Err(_) => self.gone = true,
            }
        }
        true
    }
}

impl Drop for Follower {
    /// At the end, when nothing is locked any more: waits a little for the reader.
    fn drop(&mut self) {
        let end = Instant::now() + LAST;
        while !self.flush() {
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                return;
            };
            let left = Timespec::try_from(left).ok();
            let out = io::stdout();
            let _ = rustix::event::poll(&mut [PollFd::new(&out, PollFlags::OUT)], left.as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_wait_and_the_others_are_counted() {
        let mut waiting = Waiting::default();
        for number in 0..10_000 {
            waiting.push(format!("{number:099}\n").into_bytes());
        }
        assert!(waiting.bytes <= MAX_WAITING);
        let Some(Next::Dropped(dropped)) = waiting.pop() else {
            panic!("nothing was dropped");
        };
        for number in dropped..10_000 {
            let line = Next::Line(format!("{number:099}\n").into_bytes());
            assert_eq!(waiting.pop(), Some(line));
        }
        assert_eq!(waiting.pop(), None);
        assert_eq!(waiting.bytes, 0);
    }
}
