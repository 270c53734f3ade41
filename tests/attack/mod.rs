//! Attackers: whoever answers in the repository's place, and may have stolen some of its private keys. Whatever they try is
//! refused with one line that says what and which file; nothing that runs is touched, nothing unverified is kept, and
//! the honest repository is trusted again afterwards. What a stolen key does allow is asserted too: exactly that, and no
//! more. `docs/trust.md` has the table.

mod delegated;
mod network;
mod roots;
mod scene;
mod stolen;
