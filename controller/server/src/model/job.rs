//! Jobs: workflows of the controller.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Id, Millis, Problem};

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Make an instance.
    CreateInstance,
    /// Make an instance with the contents of another.
    CopyInstance,
    /// Sanitize and delete an instance.
    DeleteInstance,
    /// Switch on.
    Start,
    /// Ask the guest to power off.
    Shutdown,
    /// Power off at once.
    Destroy,
    /// Hold.
    Suspend,
    /// Go on.
    Resume,
    /// Reset.
    Reboot,
    /// CPU, memory, disks, limits, host name.
    ChangeInstance,
    /// Take a snapshot.
    CreateSnapshot,
    /// Give an instance the contents of a snapshot.
    RestoreSnapshot,
    /// Sanitize and delete a snapshot.
    DeleteSnapshot,
    /// Capture an instance's boot disk as an image.
    SaveImage,
    /// Make a disk and attach it.
    CreateDisk,
    /// Detach, sanitize and delete a disk.
    DeleteDisk,
    /// Boot a node's utility VM.
    StartUtilityVm,
    /// Remove what nobody knows from a node's pool.
    Reclaim,
}

impl JobKind {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::CreateInstance => "create-instance",
            Self::CopyInstance => "copy-instance",
            Self::DeleteInstance => "delete-instance",
            Self::Start => "start",
            Self::Shutdown => "shutdown",
            Self::Destroy => "destroy",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::Reboot => "reboot",
            Self::ChangeInstance => "change-instance",
            Self::CreateSnapshot => "create-snapshot",
            Self::RestoreSnapshot => "restore-snapshot",
            Self::DeleteSnapshot => "delete-snapshot",
            Self::SaveImage => "save-image",
            Self::CreateDisk => "create-disk",
            Self::DeleteDisk => "delete-disk",
            Self::StartUtilityVm => "start-utility-vm",
            Self::Reclaim => "reclaim",
        }
    }
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Going forward.
    Running,
    /// Taking back what it did.
    Undoing,
    /// Done and verified.
    Succeeded,
    /// Everything it did is taken back.
    Failed,
    /// As `failed`, because somebody asked for it.
    Cancelled,
}

impl JobState {
    /// Whether nothing follows.
    pub fn ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// To come.
    Pending,
    /// Being done.
    Running,
    /// Done and verified.
    Done,
    /// Gave up.
    Failed,
    /// Being taken back.
    Undoing,
    /// Taken back, or nothing to take back.
    Undone,
}

/// A step of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// What it does, as `create-volume`.
    pub name: String,
    /// In words.
    pub description: String,
    /// How it stands.
    pub state: StepState,
    /// How often it was begun.
    pub attempts: u32,
    /// Seconds it may take.
    pub deadline_seconds: u32,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Millis>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Millis>,
    /// What it waits for, or why it was begun again.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How far the running job of a utility VM is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// The utility VM's step.
    pub step: String,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes in all, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Rate.
    pub bytes_per_second: u64,
}

/// A workflow: what is done, in which order, and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Id.
    pub id: Id,
    /// What it does.
    pub kind: JobKind,
    /// Whose; operators' alone where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// What it is about, as `instances/0192…`.
    pub subject: String,
    /// The node it works on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Id>,
    /// How it stands.
    pub state: JobState,
    /// Somebody asked for its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_requested: bool,
    /// Its steps.
    pub steps: Vec<Step>,
    /// How far the running job of the utility VM is; not kept over a restart of the controller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Box<Problem>>,
    /// When it was accepted.
    pub created_at: Millis,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Millis>,
}

/// The answer to a request that starts a job, or changes a record at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Accepted {
    /// What was made or changed, as `instances/0192…`.
    pub subject: String,
    /// Id of what was made or changed.
    pub id: Id,
    /// The job to follow; absent where everything is done already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Id>,
}
