//! What programs write to their standard output and standard error. Nothing here panics, whatever is behind them.

use std::io;
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::error::{Context, ErrorKind, Result};
use crate::text;

/// Writes an answer to standard output. Failing to write it (`>/dev/full`) is an error; a reader that closes the pipe early
/// (`| head`) is not.
pub fn answer(text: &str) -> Result<()> {
    match write(io::stdout(), text.as_bytes()) {
        Err(Errno::PIPE) => Ok(()),
        // Whatever the cause is: a full disk there is not the appliance's.
        written => written
            .doing(|| "writing to the standard output")
            .map_err(|e| e.of(ErrorKind::Failed)),
    }
}

/// Writes a line to standard error; a failure to do so is ignored.
pub fn complain(program: &str, text: &str) {
    let text = text::line(text);
    let _ = write(io::stderr(), format!("{program}: {text}\n").as_bytes());
}

/// Writes all bytes. The descriptor may be non-blocking: another process that shares it may have made it so.
pub fn write(to: impl AsFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut ready = [PollFd::new(&to, PollFlags::OUT)];
                match rustix::event::poll(&mut ready, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e),
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
