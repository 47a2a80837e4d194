//! Certificates for one test: an authority, a server's and a client's, made by openssl(1).
//! It must not know who uses them.

use std::process::Command;

use super::Scratch;

/// A directory with `ca.pem`, `server.pem`, `client.pem` and the keys `*.key`.
pub(crate) struct Certificates(Scratch);

impl Certificates {
    pub(crate) fn new() -> Self {
        Self::lasting(2)
    }

    /// The same certificates, which all end in `days` days.
    pub(crate) fn lasting(days: u32) -> Self {
        let days = &days.to_string();
        let made = Self(Scratch::new());
        let curve = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ];
        made.openssl(&[
            &["req", "-x509", "-subj", "/CN=test authority", "-days", days],
            &curve[..],
            &["-keyout", "ca.key", "-out", "ca.pem"],
            &["-addext", "basicConstraints=critical,CA:TRUE"],
        ]);
        for (name, extensions) in [
            (
                "server",
                "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n",
            ),
            ("client", "extendedKeyUsage=clientAuth\n"),
        ] {
            made.0.write(&format!("{name}.ext"), extensions);
            let file = |ending: &str| format!("{name}.{ending}");
            made.openssl(&[
                &["req", "-subj", &format!("/CN={name}")],
                &curve[..],
                &["-keyout", &file("key"), "-out", &file("csr")],
            ]);
            made.openssl(&[
                &[
                    "x509",
                    "-req",
                    "-days",
                    days,
                    "-CA",
                    "ca.pem",
                    "-CAkey",
                    "ca.key",
                    "-CAcreateserial",
                ],
                &[
                    "-in",
                    &file("csr"),
                    "-extfile",
                    &file("ext"),
                    "-out",
                    &file("pem"),
                ],
            ]);
        }
        made
    }

    /// The path of one file.
    pub(crate) fn file(&self, name: &str) -> String {
        self.0.file(name)
    }

    /// Replaces the server's certificate by one that signs itself and calls itself an authority, also as `ca.pem`: what
    /// `openssl req -x509` makes unless told otherwise.
    pub(crate) fn self_signed(curve: &str) -> Self {
        let made = Self::new();
        made.openssl(&[
            &[
                "req",
                "-x509",
                "-subj",
                "/CN=server",
                "-days",
                "2",
                "-nodes",
            ],
            &[
                "-newkey",
                "ec",
                "-pkeyopt",
                &format!("ec_paramgen_curve:{curve}"),
            ],
            &["-addext", "subjectAltName=IP:127.0.0.1"],
            &["-keyout", "server.key", "-out", "server.pem"],
        ]);
        made.openssl(&[&["x509", "-in", "server.pem", "-out", "ca.pem"]]);
        made
    }

    /// Runs openssl(1) in the directory.
    pub(crate) fn openssl(&self, words: &[&[&str]]) {
        let output = Command::new("openssl")
            .args(words.concat())
            .current_dir(self.0.path())
            .output()
            .expect("openssl is installed: apt-get install openssl");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {words:?}: {errors}");
    }
}
