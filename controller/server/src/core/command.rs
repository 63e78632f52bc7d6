//! What may be asked of the core, and by whom.

use crate::model::{
    CopyRequest, Id, InstanceChange, InstanceRequest, NewDisk, NewImage, NewNode, NodeChange, PowerVerb,
    RestoreRequest, SaveImageRequest, SnapshotRequest, Token,
};

/// Who asks. The API has looked at the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Everything is allowed.
    Operator,
    /// What belongs to one project.
    Tenant {
        /// The project.
        project: String,
    },
    /// One node may be registered; the token is used up by it.
    Enrolment {
        /// The token.
        token: Id,
    },
}

/// A request that changes something.
#[derive(Debug, Clone)]
pub struct Request {
    /// Who asks.
    pub caller: Caller,
    /// What.
    pub command: Command,
    /// Key by which the same request sent again is recognized, made unique by the token; and the request's hash.
    pub idempotency: Option<(String, String)>,
    /// The generation the caller has seen.
    pub if_match: Option<u64>,
}

/// What may be asked.
#[derive(Debug, Clone)]
pub enum Command {
    /// Make an instance.
    CreateInstance(Box<InstanceRequest>),
    /// Change one.
    ChangeInstance(Id, InstanceChange),
    /// Delete one.
    DeleteInstance(Id),
    /// A control message to one.
    Power(Id, PowerVerb),
    /// Copy one.
    CopyInstance(Id, CopyRequest),
    /// Take a snapshot of one.
    CreateSnapshot(Id, SnapshotRequest),
    /// Give one the contents of a snapshot.
    RestoreSnapshot(Id, RestoreRequest),
    /// Delete a snapshot.
    DeleteSnapshot(Id),
    /// Capture an image of one.
    SaveImage(Id, SaveImageRequest),
    /// Make a disk.
    CreateDisk(NewDisk),
    /// Delete a disk.
    DeleteDisk(Id),
    /// Try again to sanitize a quarantined disk.
    SanitizeDisk(Id),
    /// Register an image.
    CreateImage(NewImage),
    /// Forget an image.
    DeleteImage(Id),
    /// Register a node.
    CreateNode(Box<NewNode>),
    /// Change a node.
    ChangeNode(Id, NodeChange),
    /// Forget a node that has nothing on it.
    DeleteNode(Id),
    /// Issue a token whose secret the caller made (only its hash is here).
    CreateToken(Token),
    /// Revoke a token.
    DeleteToken(Id),
    /// End a job.
    CancelJob(Id),
}
