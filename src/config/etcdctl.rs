//! The variables of etcdctl that say where etcd is or how it is trusted, and that dlock does not follow: an error, as dlock
//! would use another etcd, or trust it differently, than the user expects.
//! It must not know the variables that dlock follows (`setting`).

use anyhow::anyhow;

use super::endpoint::Endpoint;
use super::layers::{Layers, Source, parse_switch};
use super::setting::Setting;
use crate::output::exit::{Failure, OrFail as _};

/// A variable that dlock does not follow, according to "etcdctl --help" of 3.4 to 3.6.
struct Unsupported {
    variable: &'static str,
    /// The setting of dlock that makes the variable irrelevant.
    overriding: Setting,
    matters: fn(value: &str, https: bool) -> bool,
    hint: &'static str,
}

const UNSUPPORTED: [Unsupported; 5] = [
    Unsupported {
        variable: "ETCDCTL_DISCOVERY_SRV",
        overriding: Setting::Endpoints,
        matters: |_, _| true,
        hint: NO_SRV,
    },
    Unsupported {
        variable: "ETCDCTL_DISCOVERY_SRV_NAME",
        overriding: Setting::Endpoints,
        matters: |_, _| true,
        hint: NO_SRV,
    },
    Unsupported {
        variable: "ETCDCTL_INSECURE_DISCOVERY",
        overriding: Setting::Endpoints,
        // On by default; it matters only together with one of those above.
        matters: |value, _| parse_switch(value) == Some(false),
        hint: NO_SRV,
    },
    Unsupported {
        variable: "ETCDCTL_INSECURE_SKIP_TLS_VERIFY",
        overriding: Setting::Cacert,
        matters: |value, https| https && parse_switch(value) != Some(false),
        hint: "dlock verifies every certificate: name the authority with --cacert or DLOCK_CACERT, or unset the variable",
    },
    Unsupported {
        variable: "ETCDCTL_INSECURE_TRANSPORT",
        overriding: Setting::Endpoints,
        matters: |value, https| !https && parse_switch(value) == Some(false),
        hint: "write the endpoints with https://, or unset the variable",
    },
];

const NO_SRV: &str = "dlock does not look endpoints up in DNS: name them with --endpoints or DLOCK_ENDPOINTS, or unset the variable";

/// # Errors
/// A variable is set that would decide in etcdctl where etcd is or how it is trusted, and no setting of dlock's own does.
pub(super) fn refuse_unsupported(layers: &Layers, endpoints: &[Endpoint]) -> Result<(), Failure> {
    let https = endpoints.iter().any(|endpoint| endpoint.https);
    for one in &UNSUPPORTED {
        let Some(found) = layers.find_variable(one.variable.to_owned()) else {
            continue;
        };
        let own = |source| match source {
            Source::Variable(name) => name == one.overriding.variable(),
            Source::Flag(_) | Source::File { .. } => true,
        };
        let overridden = layers
            .find(one.overriding)
            .is_some_and(|found| own(found.source));
        if !overridden && (one.matters)(&found.text.to_string_lossy(), https) {
            return Err(anyhow!("cannot follow {found}")).or_hint(one.hint);
        }
    }
    Ok(())
}
