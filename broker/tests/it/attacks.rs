//! Attacks, each tried as an attacker would try it, over real sockets, with the honest form of the same request beside it: were
//! that refused as well, the refusal would prove nothing. `docs/security.md` says what each is about.

mod exhaustion;
mod forgery;
mod pages;
mod paths;
mod peers;
mod secrets;
mod tricks;
