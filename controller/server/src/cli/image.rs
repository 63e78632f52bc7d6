//! `image`: what instances are made of.

use std::path::PathBuf;

use uvm_api::ImageSource;

use super::client::Method;
use super::failure::Result;
use super::session::{Flags, Follow, Limit, Scope, Session, read_document};
use super::table::{Details, Table};
use super::units::{age, bytes, mib, now, parse_mib, time, yes_or_no};
use crate::config::FileFlag;
use crate::model::{Image, ImageContents, NewImage};

/// `image …`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    scope: Scope,
    #[command(flatten)]
    flags: Flags,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Images are also captured from instances, by `instance save-image`.")]
enum Verb {
    /// List images: one's own, and everybody's.
    List(Limit),
    /// Show an image.
    Show {
        /// Name or id.
        image: String,
    },
    /// Register an OCI image. An operator's without --project is everybody's.
    Add(Box<Add>),
    /// Forget an image. Instances made of it stay.
    Delete {
        /// Name or id.
        image: String,
        #[command(flatten)]
        follow: Follow,
    },
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    uvm-controller image add debian --registry https://registry.example:5000 --repository debian \\\n    \
    --reference 12 --digest sha256:… --min-disk 2GiB\n  \
    uvm-controller image add alpine --oci-layout https://images.example/alpine --digest sha256:…")]
struct Add {
    /// Name, unique among what the owner sees.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// A registry that speaks the OCI distribution API, as https://registry.example:5000.
    #[arg(long, value_name = "URL", requires = "repository", conflicts_with = "oci_layout",
        required_unless_present_any = ["oci_layout", "file"])]
    registry: Option<String>,
    /// The repository in the registry.
    #[arg(long, value_name = "NAME", requires = "registry")]
    repository: Option<String>,
    /// Folder of an OCI image layout behind a web server, or file:// on the nodes.
    #[arg(long, value_name = "URL")]
    oci_layout: Option<String>,
    /// Digest of the index or manifest, as sha256:….
    #[arg(long, required_unless_present = "file")]
    digest: Option<String>,
    /// Tag, for people.
    #[arg(long, value_name = "TAG")]
    reference: Option<String>,
    /// Architecture, as in OCI.
    #[arg(long, default_value = "amd64")]
    architecture: String,
    /// Operating system family.
    #[arg(long, default_value = "linux")]
    os: String,
    /// Smallest boot disk, as 2GiB; a number is MiB.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_mib)]
    min_disk: u64,
    /// Smallest memory, as 512MiB; a number is MiB.
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_mib)]
    min_memory: u64,
    /// A kind of hypervisor it runs under [default: any]; may be given several times.
    #[arg(long = "hypervisor", value_name = "KIND")]
    hypervisors: Vec<String>,
    /// The whole request as JSON, instead of the other flags; `-` reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "registry", "oci_layout", "digest"])]
    file: Option<PathBuf>,
}

impl Add {
    fn request(self, project: Option<String>) -> Result<NewImage> {
        if let Some(file) = &self.file {
            return read_document(file);
        }
        let source = match (self.registry, self.oci_layout) {
            (Some(url), _) => ImageSource::Registry { url, repository: self.repository.unwrap_or_default() },
            (None, url) => ImageSource::OciLayout { url: url.unwrap_or_default() },
        };
        Ok(NewImage {
            name: self.name.unwrap_or_default(),
            project,
            source,
            reference: self.reference,
            digest: self.digest.unwrap_or_default(),
            architecture: self.architecture,
            os: self.os,
            min_disk_mib: self.min_disk,
            min_memory_mib: self.min_memory,
            hypervisors: self.hypervisors,
        })
    }
}

impl Arguments {
    pub(super) fn run(self, file: &FileFlag) -> Result<()> {
        let session = Session::open(file, &self.flags, &self.scope)?;
        let path = |image: &str| session.id("images", image).map(|id| format!("/v1/images/{id}"));
        match self.verb {
            Verb::List(limit) => {
                session.list("/v1/images", &session.scoped(), limit.limit, |images| Ok(table(images)))
            }
            Verb::Show { image } => session
                .show(session.client.get(&path(&image)?, &Vec::new())?, |image: &Image| Ok(details(image))),
            Verb::Add(add) => {
                let request = add.request(session.project.clone())?;
                session.change(Method::Post, "/v1/images", &request, None, Follow { watch: false })
            }
            Verb::Delete { image, follow } => session.ask(Method::Delete, &path(&image)?, follow),
        }
    }
}

/// What the contents are, and their digest.
fn contents(contents: &ImageContents) -> (&'static str, &str) {
    match contents {
        ImageContents::Oci { digest, .. } => ("oci", digest),
        ImageContents::Disk { digest, .. } => ("disk", digest),
    }
}

fn table(images: &[Image]) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "PROJECT",
        "KIND",
        "OS",
        "ARCHITECTURE",
        ">MIN DISK",
        ">MIN MEMORY",
        "READY",
        ">AGE",
        "ID",
    ]);
    let now = now();
    for image in images {
        table.row([
            image.name.clone(),
            image.project.clone().unwrap_or_default(),
            contents(&image.contents).0.to_owned(),
            image.os.clone(),
            image.architecture.clone(),
            mib(image.min_disk_mib),
            mib(image.min_memory_mib),
            yes_or_no(image.ready).to_owned(),
            age(now, image.created_at),
            image.id.to_string(),
        ]);
    }
    table
}

fn details(image: &Image) -> String {
    let (kind, digest) = contents(&image.contents);
    let mut details = Details::default();
    details
        .add("id", image.id.to_string())
        .add("name", &image.name)
        .add("project", image.project.clone().unwrap_or_else(|| "everybody's".to_owned()))
        .add("kind", kind)
        .add("digest", digest);
    match &image.contents {
        ImageContents::Oci { source, reference, .. } => {
            let source = match source {
                ImageSource::OciLayout { url } => url.clone(),
                ImageSource::Registry { url, repository } => format!("{url} {repository}"),
            };
            details.add("source", source).add("reference", reference.clone().unwrap_or_default());
        }
        ImageContents::Disk { size_bytes, device_bytes, .. } => {
            details.add("size", bytes(*size_bytes)).add("device", bytes(*device_bytes));
        }
    }
    details
        .add("architecture", &image.architecture)
        .add("os", &image.os)
        .add("smallest disk", mib(image.min_disk_mib))
        .add("smallest memory", mib(image.min_memory_mib))
        .add("hypervisors", image.hypervisors.join(" "))
        .add("ready", yes_or_no(image.ready))
        .add("job", image.active_job.map(|job| job.to_string()).unwrap_or_default())
        .add("generation", image.generation.to_string())
        .add("registered", time(image.created_at))
        .to_string()
}
