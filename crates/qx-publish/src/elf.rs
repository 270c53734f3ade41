//! What a program is for, by its first bytes.

/// How many of a program's first bytes tell what it is.
pub(crate) const HEAD: usize = 20;

/// Architectures by the kernel's name: ELF class (1: 32 bits, 2: 64), data encoding (1: little-endian), machine.
const ARCHITECTURES: [(&str, u8, u8, u16); 12] = [
    ("x86_64", 2, 1, 62),
    ("aarch64", 2, 1, 183),
    ("riscv64", 2, 1, 243),
    ("armv6l", 1, 1, 40),
    ("armv7l", 1, 1, 40),
    ("i386", 1, 1, 3),
    ("i486", 1, 1, 3),
    ("i586", 1, 1, 3),
    ("i686", 1, 1, 3),
    ("loongarch64", 2, 1, 258),
    ("ppc64le", 2, 1, 21),
    ("s390x", 2, 2, 22),
];

/// What a program is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// An ELF program of the architecture that was asked for.
    Elf,
    /// A script.
    Script,
}

/// Whether this is a name that [`program`] knows.
pub(crate) fn known(arch: &str) -> bool {
    ARCHITECTURES.iter().any(|(name, ..)| *name == arch)
}

/// What a program with these first bytes is. The error says why it cannot run on `arch`.
pub(crate) fn program(head: &[u8], arch: &str) -> Result<Program, String> {
    if head.starts_with(b"#!") {
        return Ok(Program::Script);
    }
    if !head.starts_with(b"\x7fELF") || head.len() < HEAD {
        return Err("it is neither an ELF program nor a script".into());
    }
    let (class, data) = (head[4], head[5]);
    let half = |at: usize| {
        let bytes = [head[at], head[at + 1]];
        match data {
            2 => u16::from_be_bytes(bytes),
            _ => u16::from_le_bytes(bytes),
        }
    };
    let (kind, machine) = (half(16), half(18));
    let found = (class, data, machine);
    let expected = ARCHITECTURES.iter().find(|(name, ..)| *name == arch);
    if expected.map(|(_, c, d, m)| (*c, *d, *m)) != Some(found) {
        let names: Vec<&str> = ARCHITECTURES
            .iter()
            .filter(|(_, c, d, m)| (*c, *d, *m) == found)
            .map(|(name, ..)| *name)
            .collect();
        let found = match names[..] {
            [] => format!("ELF machine {machine}"),
            _ => names.join(" or "),
        };
        return Err(format!(
            "it is built for {found}, but the recipe is for {arch}"
        ));
    }
    // An executable, or a position-independent one, which is marked as a shared object.
    if !matches!(kind, 2 | 3) {
        return Err(format!(
            "it is an ELF file of type {kind}, not an executable"
        ));
    }
    Ok(Program::Elf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(class: u8, data: u8, kind: u16, machine: u16) -> Vec<u8> {
        let half = |value: u16| match data {
            2 => value.to_be_bytes(),
            _ => value.to_le_bytes(),
        };
        let mut head = b"\x7fELF".to_vec();
        head.extend([class, data, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        head.extend(half(kind));
        head.extend(half(machine));
        head
    }

    #[test]
    fn programs_are_told_by_their_header() {
        for (head, arch, good) in [
            (head(2, 1, 2, 62), "x86_64", true),
            (head(2, 1, 3, 62), "x86_64", true),
            (head(2, 1, 3, 183), "aarch64", true),
            (head(1, 1, 3, 40), "armv7l", true),
            (head(2, 2, 3, 22), "s390x", true),
            (head(2, 1, 3, 183), "x86_64", false),
            // The x32 ABI.
            (head(1, 1, 3, 62), "x86_64", false),
            // An object file, a core dump.
            (head(2, 1, 1, 62), "x86_64", false),
            (head(2, 1, 4, 62), "x86_64", false),
            (head(2, 1, 3, 62), "pdp11", false),
            (head(2, 1, 3, 62)[..19].to_vec(), "x86_64", false),
            (b"MZ".to_vec(), "x86_64", false),
            (vec![], "x86_64", false),
        ] {
            let result = program(&head, arch);
            assert_eq!(
                result == Ok(Program::Elf),
                good,
                "{head:?} {arch} {result:?}"
            );
        }
        assert_eq!(program(b"#!/bin/sh\n", "x86_64"), Ok(Program::Script));
        let error = program(&head(2, 1, 3, 183), "x86_64").unwrap_err();
        assert_eq!(
            error,
            "it is built for aarch64, but the recipe is for x86_64"
        );
    }
}
