//! TLS as people make it: certificates that sign themselves, odd curves, and files that cannot be used.
//! It must not know how a certificate is checked.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::support::{
    Certificates, Dlock, Etcd, LIMIT, Outcome, boot_clock, eventually, free_port, since,
};

fn run(etcd: &Etcd, words: &[&str]) -> Outcome {
    let dlock = Dlock::on(etcd).args(["--connect-timeout=5s"]).args(words);
    dlock.run(["job", "true"]).finish()
}

/// The authority signs the server's request again, with the extensions of `server.ext`.
fn sign_server(made: &Certificates, hash: &str) {
    let authority = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    made.openssl(&[
        &["x509", "-req", "-days", "2", hash],
        &["-in", "server.csr", "-extfile", "server.ext"],
        &authority,
        &["-out", "server.pem"],
    ]);
}

/// "exactly that certificate byte for byte"
#[test]
fn a_server_certificate_that_calls_itself_an_authority_works_as_cacert() {
    for curve in ["P-256", "P-521"] {
        let made = Certificates::self_signed(curve);
        let etcd = Etcd::start_tls(&made);
        let trusted = |ca: &str| run(&etcd, &["--cacert", ca]);
        trusted(&made.file("ca.pem")).expect_code(0).expect_silent();
        // The same name, the same form, another key.
        let other = Certificates::self_signed(curve);
        trusted(&other.file("ca.pem"))
            .expect_code(125)
            .expect_stderr(&["invalid peer certificate: ", "\nhint: "]);
        // That certificate, but for another name.
        let by_name = etcd.endpoint().replace("127.0.0.1", "localhost");
        let named = Dlock::at(&by_name).args(["--connect-timeout=5s", "--cacert"]);
        let refused = named
            .args([made.file("ca.pem")])
            .run(["job", "true"])
            .finish();
        refused.expect_code(125).expect_stderr(&[
            "not valid for name",
            "hint: the server's certificate is for another name",
        ]);
        etcd.assert_empty();
    }
}

/// A server may not use the certificate of its authority when another one was given.
#[test]
fn the_certificate_of_an_authority_is_accepted_only_if_it_is_the_given_one() {
    let made = Certificates::new();
    // Signed by the given authority, and itself an authority.
    std::fs::write(
        made.file("server.ext"),
        "subjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:TRUE\n",
    )
    .expect("our own directory");
    sign_server(&made, "-sha256");
    let etcd = Etcd::start_tls(&made);
    run(&etcd, &["--cacert", &made.file("ca.pem")])
        .expect_code(125)
        .expect_stderr(&[
            "CaUsedAsEndEntity",
            "hint: the server uses the certificate of an authority",
        ]);
    run(&etcd, &["--cacert", &made.file("server.pem")])
        .expect_code(0)
        .expect_silent();
}

/// "P-521 keys (`etcd --auto-tls`)", with the certificate that etcd left in its data directory.
#[test]
fn a_server_with_auto_tls_works() {
    let (etcd, certificate) = Etcd::start_auto_tls();
    run(&etcd, &["--cacert", &certificate])
        .expect_code(0)
        .expect_silent();
    let doctor = Dlock::on(&etcd).args(["--cacert", &certificate, "doctor"]);
    let outcome = doctor.finish();
    assert!(outcome.code().is_some_and(|code| code <= 1), "{outcome:?}");
}

#[test]
fn an_authority_on_p_521_works() {
    let made = Certificates::new();
    made.openssl(&[
        &[
            "req",
            "-x509",
            "-subj",
            "/CN=another authority",
            "-days",
            "2",
            "-nodes",
        ],
        &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-521"],
        &["-keyout", "ca.key", "-out", "ca.pem"],
    ]);
    for hash in ["-sha256", "-sha384", "-sha512"] {
        sign_server(&made, hash);
        let etcd = Etcd::start_tls(&made);
        run(&etcd, &["--cacert", &made.file("ca.pem")])
            .expect_code(0)
            .expect_silent();
    }
}

/// In each form in which openssl writes a key.
#[test]
fn a_client_certificate_on_p_521_works() {
    let made = Certificates::new();
    let etcd = Etcd::start_mutual_tls(&made);
    made.openssl(&[
        &["req", "-subj", "/CN=client", "-nodes", "-newkey", "ec"],
        &[
            "-pkeyopt",
            "ec_paramgen_curve:P-521",
            "-keyout",
            "p521.key",
            "-out",
            "p521.csr",
        ],
    ]);
    made.openssl(&[
        &[
            "x509",
            "-req",
            "-in",
            "p521.csr",
            "-extfile",
            "client.ext",
            "-days",
            "2",
        ],
        &[
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            "p521.pem",
        ],
    ]);
    made.openssl(&[&["ec", "-in", "p521.key", "-out", "sec1.key"]]);
    let with = |key: &str| {
        let (ca, cert, key) = (made.file("ca.pem"), made.file("p521.pem"), made.file(key));
        run(&etcd, &["--cacert", &ca, "--cert", &cert, "--key", &key])
    };
    for key in ["p521.key", "sec1.key"] {
        with(key).expect_code(0).expect_silent();
    }
    made.openssl(&[
        &[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-521",
        ],
        &["-out", "other.key"],
    ]);
    with("other.key")
        .expect_code(125)
        .expect_stderr(&["belongs to another one"]);
}

/// The machine's authorities are needed when none is given.
#[test]
fn a_machine_without_authorities_is_explained() {
    let etcd = Etcd::start_tls(&Certificates::new());
    let dlock = Dlock::on(&etcd)
        .env("SSL_CERT_FILE", "/dev/null")
        .env("SSL_CERT_DIR", "/dev/null");
    dlock.run(["job", "true"]).finish().expect_code(125).expect_stderr(&[
        "there are no certificates of authorities on this machine",
        "\nhint: install the package ca-certificates, or give the server's authority with --cacert",
    ]);
}

/// "an error that names *our* file and the command that makes a good one", without a retry; the commands of the hints are
/// run where they ask for nothing.
#[test]
fn files_that_cannot_be_used_are_named_with_the_command_that_makes_good_ones() {
    let made = Certificates::new();
    let etcd = Etcd::start_mutual_tls(&made);
    let ca = made.file("ca.pem");
    let fails = |cert: &str, key: &str, words: &[&str]| {
        let (cert, key) = (made.file(cert), made.file(key));
        let began = boot_clock();
        // Where a certificate stands for the key, others can read it, and dlock would warn.
        let dlock = Dlock::on(&etcd).args(["-q", "--connect-timeout=60s", "--cacert", &ca]);
        let files = dlock.args(["--cert", &cert, "--key", &key]);
        let outcome = files.run(["job", "true"]).finish();
        assert!(since(began) < Duration::from_secs(30), "{outcome:?}");
        let outcome = outcome.expect_code(125).expect_stderr(words);
        let (error, hint) = outcome.stderr.split_once("\nhint: ").expect("a hint");
        assert!(
            error.starts_with("dlock: cannot lock 'job': cannot use the "),
            "{error}"
        );
        let (_, commands) = hint.split_once(": ").expect("commands");
        commands.trim_end().to_owned()
    };
    let obey = |commands: &str| {
        let shell = Command::new("sh")
            .args(["-euc", commands])
            .current_dir(std::path::Path::new(&ca).parent().expect("a directory"))
            .output()
            .expect("sh starts");
        assert!(shell.status.success(), "{commands}: {shell:?}");
    };
    let works = |cert: &str, key: &str| {
        let (cert, key) = (made.file(cert), made.file(key));
        run(&etcd, &["--cacert", &ca, "--cert", &cert, "--key", &key])
            .expect_code(0)
            .expect_silent();
    };

    // Without extensions openssl makes version 1.
    made.openssl(&[
        &[
            "x509",
            "-req",
            "-in",
            "client.csr",
            "-days",
            "2",
            "-CA",
            "ca.pem",
        ],
        &["-CAkey", "ca.key", "-CAcreateserial", "-out", "old.pem"],
    ]);
    let old = format!(
        "the client certificate '{}': it has the form of X.509 version 1",
        made.file("old.pem")
    );
    obey(&fails("old.pem", "client.key", &[&old]));
    works("old.pem", "client.key");

    for (name, form) in [("locked.key", "-aes256"), ("locked2.key", "-traditional")] {
        made.openssl(&[
            &[
                "pkey",
                "-in",
                "client.key",
                "-passout",
                "pass:secret",
                "-aes256",
                form,
            ],
            &["-out", name],
        ]);
        let locked = format!("the private key '{}': it is encrypted", made.file(name));
        let commands = fails("client.pem", name, &[&locked]);
        obey(&commands.replace("pkey ", "pkey -passin pass:secret "));
        works("client.pem", &format!("{name}.plain"));
    }

    let (cert, key) = (made.file("client.pem"), made.file("server.key"));
    let other =
        format!("the client certificate '{cert}': the private key '{key}' belongs to another one");
    obey(&fails("client.pem", "server.key", &[&other]));

    let none = format!("the private key '{cert}': there is no private key in PEM form in it");
    fails("client.pem", "client.pem", &[&none]);
    let none = format!("the client certificate '{key}': there is no certificate in PEM form in it");
    fails("server.key", "client.key", &[&none]);
    etcd.assert_empty();
}

/// A proxy in front of etcd that ends TLS and offers no HTTP/2.
#[test]
fn a_server_without_http2_is_explained() {
    let made = Certificates::new();
    let address = format!("127.0.0.1:{}", free_port());
    let (cert, key) = (made.file("server.pem"), made.file("server.key"));
    let words = [
        "openssl", "s_server", "-quiet", "-accept", &address, "-cert", &cert, "-key", &key,
    ];
    let _proxy = Dlock::program(words).start();
    eventually(LIMIT, "the proxy listens", || {
        TcpStream::connect(&address).is_ok()
    });
    Dlock::at(&format!("https://{address}"))
        .args(["--connect-timeout=2s", "--cacert", &made.file("ca.pem")])
        .run(["job", "true"])
        .finish()
        .expect_code(125)
        .expect_stderr(&[
            "the server did not choose HTTP/2 in the TLS handshake (ALPN)",
            "\nhint: is it etcd? a proxy in front of it has to offer h2, or to pass TLS through",
        ]);
}
