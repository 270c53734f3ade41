//! Scripts: programs that another one runs, which their first line names (execve(2), "Interpreter scripts").

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// So much of a program the kernel reads to find out how it is run (linux/binfmts.h, `BINPRM_BUF_SIZE`).
pub const HEAD: usize = 256;

/// How a script is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// What the kernel executes, by an absolute path.
    pub interpreter: String,
    /// What `env` looks for then and becomes, if that is the interpreter.
    pub named: Option<String>,
    /// What the interpreter is given before the script.
    options: Vec<String>,
}

impl Script {
    /// By its first bytes, if it is one that can be run.
    pub fn parse(head: &[u8]) -> Option<Script> {
        let line = head.get(..HEAD).unwrap_or(head).strip_prefix(b"#!")?;
        let end = line.iter().position(|byte| *byte == b'\n');
        let line = match end {
            Some(end) => &line[..end],
            // The kernel refuses what it sees only a part of.
            None if head.len() < HEAD => line,
            None => return None,
        };
        let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
        let interpreter = words.next()?.to_owned();
        if !interpreter.starts_with('/') {
            return None;
        }
        let mut options: Vec<String> = words.map(str::to_owned).collect();
        let mut named = None;
        if interpreter.ends_with("/env") {
            // `env -S` splits what the kernel hands over as one word.
            options.retain(|word| word != "-S");
            if options.is_empty() {
                return None;
            }
            named = Some(options.remove(0));
        }
        Some(Script {
            interpreter,
            named,
            options,
        })
    }

    /// The one in a regular file.
    pub fn read(path: &Path) -> Option<Script> {
        // Others may wait for ever when they are opened.
        if !path.metadata().ok()?.is_file() {
            return None;
        }
        let mut head = Vec::new();
        let file = File::open(path).ok()?;
        file.take(HEAD as u64).read_to_end(&mut head).ok()?;
        Script::parse(&head)
    }

    /// Whether an interpreter that was given these arguments, and then the script, runs it: they are options, its own or those
    /// of the first line.
    pub fn follows(&self, arguments: &[&[u8]]) -> bool {
        let option = |word: &&[u8]| {
            // The kernel hands the rest of the first line over as one argument.
            let whole = self.options.join(" ");
            word.first() == Some(&b'-')
                || whole.as_bytes() == *word
                || self.options.iter().any(|own| own.as_bytes() == *word)
        };
        arguments.iter().all(option)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines() {
        for (head, interpreter, named, options) in [
            ("#!/bin/sh\necho", "/bin/sh", None, ""),
            ("#! /bin/sh -e\n", "/bin/sh", None, "-e"),
            ("#!/bin/busybox\tash \n", "/bin/busybox", None, "ash"),
            (
                "#!/usr/bin/env python3\n",
                "/usr/bin/env",
                Some("python3"),
                "",
            ),
            (
                "#!/usr/bin/env -S node --no-warnings\n",
                "/usr/bin/env",
                Some("node"),
                "--no-warnings",
            ),
            ("#!/bin/false", "/bin/false", None, ""),
        ] {
            let script = Script::parse(head.as_bytes()).expect(head);
            assert_eq!(script.interpreter, interpreter, "{head}");
            assert_eq!(script.named.as_deref(), named, "{head}");
            assert_eq!(script.options.join(" "), options, "{head}");
        }
        let long = format!("#!/{}\n", "x".repeat(HEAD));
        for head in [
            "",
            "#",
            "#!",
            "#!\n",
            "#!sh\n",
            "#!/usr/bin/env\n",
            "\x7fELF",
            " #!/bin/sh\n",
            &long,
        ] {
            assert_eq!(Script::parse(head.as_bytes()), None, "{head}");
        }
    }

    #[test]
    fn what_may_stand_before_a_script() {
        let script = Script::parse(b"#!/bin/busybox ash\n").unwrap();
        for (arguments, follows) in [
            (&[][..], true),
            (&[&b"ash"[..]][..], true),
            (&[&b"ash"[..], b"-e"][..], true),
            (&[&b"/bin/other"[..]][..], false),
            (&[&b"-c"[..], b"echo"][..], false),
        ] {
            assert_eq!(script.follows(arguments), follows, "{arguments:?}");
        }
    }
}
