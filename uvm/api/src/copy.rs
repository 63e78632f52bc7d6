//! `clone`, `capture` and `restore`: whole devices, byte for byte.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::DeviceRef;

/// `clone`: the target becomes the source. A larger target reads as zero behind the source's last byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CloneSpec {
    /// Job id and idempotency key; made up where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The device whose whole contents are replaced.
    pub device: DeviceRef,
    /// The device that is read. It may be attached read-only.
    pub source: DeviceRef,
    /// The plan the caller agreed to; nothing is written where the plan is another now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
}

/// `capture`: the device's whole contents as one Zstandard frame, which any Zstandard decoder turns into the raw disk
/// again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptureSpec {
    /// Job id and idempotency key; made up where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The device that is read. It may be attached read-only.
    pub device: DeviceRef,
    /// Where the stream goes.
    pub destination: StreamTarget,
    /// The plan the caller agreed to; nothing is sent where the plan is another now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
}

/// `restore`: the target becomes what was captured. A larger target reads as zero behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreSpec {
    /// Job id and idempotency key; made up where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The device whose whole contents are replaced.
    pub device: DeviceRef,
    /// Where the stream comes from.
    pub source: StreamSource,
    /// The plan the caller agreed to; nothing is written where the plan is another now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<String>,
}

/// Where a captured device goes: one `PUT`, which the server answers with 200, 201 or 204 once it has everything.
/// An answer in JSON with `digest` or `size_bytes` is compared with what was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamTarget {
    /// `http://` or `https://`, without userinfo; a query is not shown in plans and messages.
    pub url: String,
    /// The whole value of the `Authorization` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Secret>,
}

/// Where a captured device comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamSource {
    /// `http://` or `https://` (or `file://` for the host command), without userinfo; a query is not shown in plans
    /// and messages.
    pub url: String,
    /// The whole value of the `Authorization` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Secret>,
    /// `sha256:…` of the stream as it is stored. Mandatory: the disk boots only once it was compared.
    pub digest: String,
    /// Size of the stream as it is stored.
    pub size_bytes: u64,
    /// Size of the device it was captured from.
    pub device_bytes: u64,
}

/// A credential. It is in requests alone: no plan, event, problem or answer carries it, and `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(format = Password)]
pub struct Secret(String);

impl Secret {
    /// Takes a credential.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The credential itself, for the one place that sends it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{JobResult, JobSpec};

    #[test]
    fn a_credential_is_sent_and_not_shown() {
        let job = json!({"kind": "restore", "device": {"serial": "a"}, "source": {"url": "https://x/y",
            "authorization": "Bearer hidden", "digest": "sha256:0", "size_bytes": 1, "device_bytes": 2}});
        let spec: JobSpec = serde_json::from_value(job.clone()).expect("a job");
        assert_eq!(serde_json::to_value(&spec).expect("JSON"), job);
        assert!(!format!("{spec:?}").contains("hidden"));
        let without = serde_json::to_value(spec.without_credentials()).expect("JSON");
        assert!(!without.to_string().contains("hidden"), "{without}");
        assert_ne!(spec, spec.without_credentials());
    }

    #[test]
    fn a_clone_is_about_two_devices() {
        let job = json!({"kind": "clone", "device": {"serial": "to"}, "source": {"serial": "from"}});
        let spec: JobSpec = serde_json::from_value(job).expect("a job");
        let serials: Vec<&str> = spec.devices().iter().map(|device| device.serial.as_str()).collect();
        assert_eq!(serials, ["to", "from"]);
        assert!(spec.writes() && spec.replaces_contents());
        let unknown = json!({"kind": "clone", "device": {"serial": "to"}, "sauce": {"serial": "from"}});
        let error = serde_json::from_value::<JobSpec>(unknown).expect_err("an unknown field");
        assert!(error.to_string().contains("sauce"), "{error}");
    }

    #[test]
    fn results_have_the_names_of_their_kinds() {
        let result = JobResult::Customize { changed: vec!["host name: a".to_owned()], notes: Vec::new() };
        let text = serde_json::to_value(&result).expect("JSON");
        assert_eq!(text, json!({"kind": "customize", "changed": ["host name: a"], "notes": []}));
    }
}
