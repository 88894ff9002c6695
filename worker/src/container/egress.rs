//! What keeps jobs on a bridge to the internet: rules of the engine's machine, beside those of the engine.
//!
//! They are set with `iptables` in the network namespace that this process is in, which must be the engine's. Nothing is taken
//! for granted: the rules are looked for before each run, since a firewall that is reloaded forgets them.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Our rules. One chain serves all bridges.
const CHAIN: &str = "GRIDSOCKET-INTERNET";
/// The chain that engines look at before their own and leave to others.
const ENGINE_CHAIN: &str = "DOCKER-USER";
/// How long one call may take: it waits for others that change the rules.
const CALL_MAX: Duration = Duration::from_secs(20);
/// How often rules are set that are gone again at once: more is a firewall that does not want them.
const TRIES: u32 = 4;
/// Where the tools are, whatever this process was started with.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The network devices of this process's namespace.
const DEVICES: &str = "/proc/self/net/dev";
/// Where the system says whom to ask for addresses; the second where the first names only a resolver on this machine.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// The most resolvers that a system asks.
const RESOLVERS_MAX: usize = 3;

/// All that is not the internet, by RFC 6890, and what clouds answer their machines' questions on.
const REFUSED: [&str; 14] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "192.88.99.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    // Azure's, in the midst of public addresses.
    "168.63.129.16/32",
    "255.255.255.255/32",
];

/// How packets are refused, in this order. The kernel answers with few ICMP messages in a second, and whoever gets none waits.
const REFUSE: [&str; 2] = ["-p tcp -j REJECT --reject-with tcp-reset", "-j REJECT --reject-with icmp-port-unreachable"];

/// Why jobs cannot be kept to the internet.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EgressError {
    #[error(
        "the bridge {bridge} of the container engine is not to be seen: the worker is in another network namespace"
    )]
    OtherNamespace { bridge: String },
    #[error("`{tool}` cannot be run: {source}")]
    NoTool { tool: &'static str, source: std::io::Error },
    #[error("the container engine keeps no packet filter: it has no chain {ENGINE_CHAIN} ({said})")]
    NoEngineChain { said: String },
    #[error("the rules cannot be set: {said}")]
    Refused { said: String },
    #[error("`{tool}` did not end")]
    TooSlow { tool: &'static str },
}

/// Sets the rules for `bridge`, unless they stand. A firewall that is reloaded just then forgets what was set a moment ago: then
/// they are set once more.
pub(super) async fn ensure(bridge: &str) -> Result<(), EgressError> {
    let resolvers = resolvers();
    let mut refused = String::new();
    for _ in 0..TRIES {
        if stands(bridge, &resolvers).await? {
            return Ok(());
        }
        if !std::fs::read_to_string(DEVICES).is_ok_and(|listed| is_among(&listed, bridge)) {
            return Err(EgressError::OtherNamespace { bridge: bridge.to_owned() });
        }
        let (found, said) = call("iptables", &["-w", "-n", "-L", ENGINE_CHAIN], None).await?;
        if !found {
            return Err(EgressError::NoEngineChain { said });
        }
        let (done, said) = call("iptables-restore", &["-w", "--noflush"], Some(&script(bridge, &resolvers))).await?;
        if !done {
            return Err(EgressError::Refused { said });
        }
        refused = said;
    }
    if stands(bridge, &resolvers).await? { Ok(()) } else { Err(EgressError::Refused { said: refused }) }
}

/// Each device has a line, which begins with its name and a colon.
fn is_among(listed: &str, device: &str) -> bool {
    listed.lines().any(|line| line.split_once(':').is_some_and(|(name, _)| name.trim() == device))
}

/// All of it at once. A rule that stands is put in front once more, never after what could let packets past it.
fn script(bridge: &str, resolvers: &[IpAddr]) -> String {
    let mut text = format!("*filter\n:{CHAIN} - [0:0]\n");
    for rule in rules(resolvers) {
        let _ = writeln!(text, "-A {CHAIN} {rule}");
    }
    for (chain, rule) in jumps(bridge) {
        let _ = writeln!(text, "-I {chain} 1 {rule}");
    }
    text + "COMMIT\n"
}

/// The last says which rules these are: see [`stands`].
fn rules(resolvers: &[IpAddr]) -> Vec<String> {
    let asking = resolvers.iter().flat_map(|resolver| {
        ["udp", "tcp"].map(|protocol| format!("-d {resolver}/32 -p {protocol} -m {protocol} --dport 53 -j RETURN"))
    });
    let refusing = REFUSED.iter().flat_map(|range| REFUSE.map(|refuse| format!("-d {range} {refuse}")));
    let mut rules: Vec<String> = asking.chain(refusing).collect();
    rules.push(format!("-m comment --comment {} -j RETURN", mark(&rules)));
    rules
}

/// From the bridge: what is forwarded goes through our chain, what is for the machine itself is refused. The last is looked at
/// first.
fn jumps(bridge: &str) -> [(&'static str, String); 3] {
    let [reset, refuse] = REFUSE;
    [
        (ENGINE_CHAIN, format!("-i {bridge} -j {CHAIN}")),
        ("INPUT", format!("-i {bridge} {refuse}")),
        ("INPUT", format!("-i {bridge} {reset}")),
    ]
}

fn mark(rules: &[String]) -> String {
    use sha2::Digest as _;
    let hash = sha2::Sha256::digest(rules.join("\n").as_bytes());
    hash.iter().take(8).fold(String::from("gridsocket-"), |text, byte| text + &format!("{byte:02x}"))
}

/// Whether the rules are there: as many as there should be, with the mark of these.
async fn stands(bridge: &str, resolvers: &[IpAddr]) -> Result<bool, EgressError> {
    let wanted = rules(resolvers);
    let (_, listed) = call("iptables", &["-w", "-S", CHAIN], None).await?;
    let own = format!("-A {CHAIN} ");
    let listed: Vec<&str> = listed.lines().filter(|line| line.starts_with(&own)).collect();
    let mark = wanted.last().and_then(|rule| rule.split_whitespace().nth(3)).unwrap_or_default();
    if listed.len() != wanted.len() || !listed.last().is_some_and(|line| line.contains(mark)) {
        return Ok(false);
    }
    for (chain, rule) in jumps(bridge) {
        let words: Vec<&str> = ["-w", "-C", chain].into_iter().chain(rule.split(' ')).collect();
        if !call("iptables", &words, None).await?.0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Runs a tool; tells whether it succeeded and what it said.
async fn call(tool: &'static str, words: &[&str], input: Option<&str>) -> Result<(bool, String), EgressError> {
    let no_tool = |source| EgressError::NoTool { tool, source };
    let mut child = Command::new(tool)
        .args(words)
        .env("PATH", PATH)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(no_tool)?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        // It closes early when it refuses what it reads, and then says why.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    let ended = timeout(CALL_MAX, child.wait_with_output()).await.map_err(|_| EgressError::TooSlow { tool })?;
    let output = ended.map_err(no_tool)?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).trim().to_owned()))
}

/// Those that containers ask through the engine; names must be found, also where the resolver is in a private network.
fn resolvers() -> Vec<IpAddr> {
    let read = |path: &&str| resolvers_in(&std::fs::read_to_string(path).unwrap_or_default());
    RESOLVERS.iter().map(read).find(|found| !found.is_empty()).unwrap_or_default()
}

fn resolvers_in(text: &str) -> Vec<IpAddr> {
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    named.filter(|address: &IpAddr| address.is_ipv4() && !address.is_loopback()).take(RESOLVERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_on_this_machine_is_not_one_that_containers_reach() {
        let text =
            "# made\nnameserver 127.0.0.53\nnameserver 10.0.0.2\n nameserver\t192.168.1.1\nnameserver ::1\noptions x\n";
        assert_eq!(resolvers_in(text), ["10.0.0.2", "192.168.1.1"].map(|text| text.parse::<IpAddr>().unwrap()));
        assert!(resolvers_in("nameserver 127.0.0.53").is_empty());
    }

    #[test]
    fn a_device_is_listed_by_its_whole_name() {
        let listed = "Inter-| Receive\n face |bytes\n    lo: 1 2\n gsi01: 3 4\n";
        assert!(is_among(listed, "gsi01") && is_among(listed, "lo"));
        assert!(!is_among(listed, "gsi0") && !is_among("", "lo"));
    }

    #[test]
    fn other_rules_have_another_mark() {
        let resolver = ["10.0.0.2".parse().unwrap()];
        let (without, with) = (rules(&[]), rules(&resolver));
        assert_eq!(without.len(), 2 * REFUSED.len() + 1);
        assert_eq!(with.len(), without.len() + 2);
        assert_ne!(with.last(), without.last());
        assert!(script("br0", &resolver).contains("-I DOCKER-USER 1 -i br0 -j GRIDSOCKET-INTERNET\n"));
    }
}
