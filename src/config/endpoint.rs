//! The address of one etcd member, parsed strictly: an unclear text is an error, not a guess.
//! It must not know how a connection is made.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::layers::parse_digits;

/// etcd's registered client port.
const DEFAULT_PORT: u16 = 2379;

/// One member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) https: bool,
    /// A DNS name or an address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Endpoint {
    /// Whether nobody can eavesdrop: the endpoint is on this machine or speaks TLS.
    pub(crate) fn is_private(&self) -> bool {
        let local = match self.host.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => ["localhost", "localhost."].contains(&self.host.as_str()),
        };
        self.https || local
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        let (open, close) = if self.host.contains(':') {
            ("[", "]")
        } else {
            ("", "")
        };
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)
    }
}

/// Whether an endpoint of the list has no scheme.
pub(crate) fn lacks_scheme(text: &str) -> bool {
    text.split(',').any(|word| !word.contains("://"))
}

/// Parses a list that is separated by commas. `tls` means that TLS options are given: then a bare
/// `host:port` means https, and http is an error. The error quotes the endpoint.
pub(crate) fn parse_list(text: &str, tls: bool) -> Result<Vec<Endpoint>, String> {
    // This check is the first, and its error omits the text before the @: a misplaced password must not reach a log.
    if let Some((_, host)) = text.rsplit_once('@') {
        let host = host.split(',').next().unwrap_or_default();
        return Err(format!(
            "endpoint '***@{host}': user and password do not belong here: use --user and --password-file"
        ));
    }
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for word in text.split(',').map(str::trim) {
        let endpoint = parse(word, tls).map_err(|error| format!("endpoint '{word}': {error}"))?;
        if let Some(first) = endpoints.first()
            && first.https != endpoint.https
        {
            return Err(format!(
                "endpoint '{word}': all endpoints must be http or all https, and '{first}' is the first"
            ));
        }
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    Ok(endpoints)
}

fn parse(word: &str, tls: bool) -> Result<Endpoint, String> {
    if word.is_empty() {
        return Err("it is empty".to_owned());
    }
    if word.contains(|character: char| character.is_whitespace() || character.is_control()) {
        return Err("it must not contain blanks".to_owned());
    }
    let (https, rest) = split_scheme(word, tls)?;
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '\\']) {
        return Err("only a host and a port are expected, no path or query".to_owned());
    }
    let (host, port) = split_port(authority)?;
    Ok(Endpoint {
        https,
        host: host_name(host)?,
        port: port.map_or(Ok(DEFAULT_PORT), port_number)?,
    })
}

fn split_scheme(word: &str, tls: bool) -> Result<(bool, &str), String> {
    let Some((scheme, rest)) = word.split_once("://") else {
        let lower = word.to_ascii_lowercase();
        if lower.starts_with("unix:") || lower.starts_with("unixs:") {
            return Err("unix sockets are not supported".to_owned());
        }
        return Ok((tls, word));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "https" => Ok((true, rest)),
        "http" if tls => {
            Err("http:// is without TLS, but TLS options are given: write https://".to_owned())
        }
        "http" => Ok((false, rest)),
        "unix" | "unixs" => Err("unix sockets are not supported".to_owned()),
        _ => Err(format!("unknown scheme '{scheme}': expected http or https")),
    }
}

/// Host and port. An address in brackets keeps the opening one, which no host name has.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), String> {
    if authority.starts_with('[') {
        let end = authority.find(']').ok_or("the bracket is not closed")?;
        return match &authority[end + 1..] {
            "" => Ok((&authority[..end], None)),
            rest => match rest.strip_prefix(':') {
                Some(port) => Ok((&authority[..end], Some(port))),
                None => Err("after the bracket only :PORT may follow".to_owned()),
            },
        };
    }
    match authority.split_once(':') {
        Some((_, rest)) if rest.contains(':') => {
            Err("write an IPv6 address in brackets, as in [::1]:2379".to_owned())
        }
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((authority, None)),
    }
}

fn port_number(text: &str) -> Result<u16, String> {
    parse_digits(text)
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("'{text}' is not a port: expected 1 to 65535"))
}

fn host_name(host: &str) -> Result<String, String> {
    if let Some(address) = host.strip_prefix('[') {
        return address
            .parse::<Ipv6Addr>()
            .map(|address| address.to_string())
            .map_err(|_| format!("'{address}' is not an IPv6 address"));
    }
    if host.is_empty() {
        return Err("it names no host".to_owned());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    if name
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return host
            .parse::<Ipv4Addr>()
            .map(|address| address.to_string())
            .map_err(|_| format!("'{host}' is not an IPv4 address"));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(format!("'{host}' is not a host name"));
    }
    Ok(host.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(text: &str) -> Result<String, String> {
        parse_list(text, false).map(|list| {
            list.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        })
    }

    #[test]
    fn an_endpoint_gets_its_scheme_and_port() {
        for (text, meant) in [
            ("localhost", "http://localhost:2379"),
            ("DB1.example.com:1234", "http://db1.example.com:1234"),
            ("http://a_b-c.d.:80/", "http://a_b-c.d.:80"),
            ("HTTPS://10.0.0.1", "https://10.0.0.1:2379"),
            ("https://[::1]:2380", "https://[::1]:2380"),
            ("[fe80::0:1]", "http://[fe80::1]:2379"),
            ("a, b ,a,http://a:2379", "http://a:2379 http://b:2379"),
            ("https://a,https://b", "https://a:2379 https://b:2379"),
            ("1password.example:443", "http://1password.example:443"),
        ] {
            assert_eq!(one(text).as_deref(), Ok(meant), "{text}");
        }
        assert_eq!(
            parse_list("a:1", true).unwrap()[0].to_string(),
            "https://a:1"
        );
    }

    #[test]
    fn loopback_addresses_and_https_are_private() {
        for (text, local) in [
            ("localhost", true),
            ("localhost.:1", true),
            ("127.0.0.9:1", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]", true),
            ("https://10.0.0.1", true),
            ("10.0.0.1", false),
            ("[::ffff:10.0.0.1]", false),
            ("0.0.0.0", false),
            ("localhost.example", false),
        ] {
            assert_eq!(
                parse_list(text, false).unwrap()[0].is_private(),
                local,
                "{text}"
            );
        }
    }

    #[test]
    fn nonsense_is_refused_and_quoted() {
        for (text, part) in [
            ("", "empty"),
            ("a,", "empty"),
            ("a,,b", "empty"),
            ("a b", "blanks"),
            ("a\tb:1", "blanks"),
            ("a:0", "65535"),
            ("a:99999", "65535"),
            ("a:", "65535"),
            ("a:+80", "65535"),
            ("a:x", "65535"),
            ("http://", "no host"),
            (":2379", "no host"),
            ("http://a/v3", "path"),
            ("http://a//", "path"),
            ("a?x=1", "path"),
            ("a#x", "path"),
            ("ftp://a", "scheme 'ftp'"),
            ("unix:///tmp/etcd", "unix"),
            ("unix:/tmp/etcd", "unix"),
            ("unixs://a:1", "unix"),
            ("::1:2379", "brackets"),
            ("[::1", "bracket"),
            ("[::1]x", "bracket"),
            ("[a]:1", "IPv6"),
            ("[fe80::1%eth0]:1", "IPv6"),
            ("300.1.1.1:1", "IPv4"),
            ("127.1", "IPv4"),
            ("-a:1", "host name"),
            ("a..b", "host name"),
            ("ä.example", "host name"),
            ("a;b", "host name"),
            ("http://a,https://b", "all https"),
            ("a,https://b", "all https"),
        ] {
            let error = one(text).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
            assert!(error.starts_with("endpoint '"), "{error}");
        }
        assert!(one("a,b:99999").unwrap_err().contains("endpoint 'b:99999'"));
        assert!(
            parse_list("http://a", true)
                .unwrap_err()
                .contains("without TLS")
        );
    }

    #[test]
    fn a_password_is_not_repeated() {
        for text in [
            "http://alice:XYZ@a:1",
            "alice:XYZ@a",
            "https://alice:XYZ/XYZ@XYZ@a",
            "b,http://a:XYZ,XYZ@a,c",
        ] {
            let error = one(text).unwrap_err();
            assert!(
                error.contains("--user") && error.contains("***@a"),
                "{error}"
            );
            assert!(!error.contains("XYZ"), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_accepted_list_parses_again_to_itself(text in "(https?://)?[a-z0-9.:/\\[\\]@-]{0,20}") {
            if let Ok(endpoints) = parse_list(&text, false) {
                let shown: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
                prop_assert_eq!(parse_list(&shown.join(","), false), Ok(endpoints));
            }
        }

        #[test]
        fn nothing_panics(text in ".{0,40}", tls in any::<bool>()) {
            let _ = parse_list(&text, tls);
        }
    }
}
