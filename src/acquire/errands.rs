//! The fetcher's own side: a process that fetches and unpacks for an update, and can do little else.

use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::acquire::unpack;
use crate::fetch::port::Target;
use crate::fetch::protocol::{self, Order, Reply, Request};
use crate::fetch::{self, Artifact, Source};
use crate::model::source::SourceAddress;
use crate::system::sandbox::{self, Sandbox};
use qx_release::error::{Context, Error, Result, Told};

/// Runs errands for whoever is at the other end of standard input and output, until that is closed.
pub fn run() -> Result<()> {
    // It was started as /proc/self/exe, and is known by that name.
    let _ = rustix::thread::set_name(c"qx-update");
    let talking = || "talking to the update that this fetches for";
    let mut requests = BufReader::new(io::stdin().lock());
    let mut replies = io::stdout().lock();
    let Some(order) = protocol::receive::<Order>(&mut requests).doing(talking)? else {
        return Ok(());
    };
    if !sandbox::live_with(order.parent).doing(talking)? {
        return Ok(());
    }
    let unconfined = confines(&order).enter();
    let source = match Source::open(order.source, &order.options) {
        Ok(source) => source,
        Err(e) => return protocol::send(&mut replies, &failed(&e, true)).doing(talking),
    };
    source.set_given_up(order.given_up);
    protocol::send(&mut replies, &Reply::Ready(unconfined)).doing(talking)?;
    let mut errands = Errands {
        source,
        open: None,
        replies,
    };
    while let Some(request) = protocol::receive(&mut requests).doing(talking)? {
        errands.answer(request).doing(talking)?;
    }
    Ok(())
}

/// Who talks to servers reads nothing of the machine but how to reach them; who reads what lies here talks to nobody.
fn confines(order: &Order) -> Sandbox {
    let network = matches!(order.source, SourceAddress::Url(_));
    let readable = match network {
        true => fetch::read_for_the_web(&order.options),
        // Links on a disk may lead anywhere.
        false => vec![PathBuf::from("/")],
    };
    Sandbox {
        readable,
        writable: order.writable.clone(),
        network,
    }
}

struct Errands<W> {
    source: Source,
    /// The artifact that was got last.
    open: Option<(Target, Artifact)>,
    replies: W,
}

impl<W: Write> Errands<W> {
    fn answer(&mut self, request: Request) -> io::Result<()> {
        let done = |()| Reply::Done;
        let reply = match request {
            Request::MayHave(path) => Ok(Reply::MayHave(self.source.may_have(&path))),
            Request::Small {
                path,
                limit,
                required,
            } => return self.small(&path, limit, required),
            Request::Artifact {
                target,
                downloads,
                check,
            } => self.artifact(target, &downloads, check).map(done),
            Request::Unpack { component, staging } => match self.open.take() {
                Some((target, artifact)) => unpack::unpack(
                    &component,
                    artifact,
                    target.length,
                    &target.sha256,
                    &staging,
                    &mut |_| {},
                )
                .map(done),
                None => Err(Error::new(format!(
                    "unpacking {}: there is no artifact",
                    component.name
                ))),
            },
        };
        self.say(reply)
    }

    fn say(&mut self, reply: Result<Reply>) -> io::Result<()> {
        let reply = reply.unwrap_or_else(|e| failed(&e, self.source.has_given_up()));
        protocol::send(&mut self.replies, &reply)
    }

    fn small(&mut self, path: &str, limit: u64, required: bool) -> io::Result<()> {
        let found = match required {
            true => self.source.required(path, limit).map(Some),
            false => self.source.small(path, limit),
        };
        match found {
            Ok(Some(bytes)) => {
                self.say(Ok(Reply::Bytes(bytes.len() as u64)))?;
                self.replies.write_all(&bytes)?;
                self.replies.flush()
            }
            Ok(None) => self.say(Ok(Reply::Nothing)),
            Err(e) => self.say(Err(e)),
        }
    }

    fn artifact(&mut self, target: Target, downloads: &Path, check: bool) -> Result<()> {
        self.open = None;
        let replies = &mut self.replies;
        let mut get = || {
            // An update that is gone does not hear it.
            let mut progress = |done| drop(protocol::send(replies, &Reply::Progress(done)));
            self.source.artifact(
                &target.path,
                target.length,
                &target.sha256,
                downloads,
                &mut progress,
            )
        };
        let mut artifact = get()?;
        if check {
            self.source.check(&mut artifact, &target)?;
            artifact = get()?;
        }
        self.open = Some((target, artifact));
        Ok(())
    }
}

fn failed(error: &Error, given_up: bool) -> Reply {
    Reply::Failed {
        why: Told::from(error),
        given_up,
    }
}
