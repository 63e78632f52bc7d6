//! `cargo xtask image`: makes a guest's root file system from a recipe of `image-recipes`, as an OCI image layout.
//!
//! The first layer is what Debian's packages make, streamed from mmdebstrap; the second is what the recipe itself
//! adds and removes.

use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::cache;
use crate::deps::{self, Need};
use crate::oci::{Layer, LayoutWriter};

/// Part of the cache's key: raise it when what this file does with the same recipe changes.
const BUILD_VERSION: &str = "1";

const NEEDS: [Need; 3] = [
    need("mmdebstrap", "mmdebstrap", "make a Debian root file system"),
    need(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
        "verify Debian's packages",
    ),
    need("gpgv", "gpgv", "verify Debian's packages"),
];

/// Without root, mmdebstrap works in a user namespace with a range of user ids.
const NEED_WITHOUT_ROOT: Need = need("newuidmap", "uidmap", "make a root file system without root");

const fn need(probe: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { probe, package, why }
}

/// How an image is made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// The image's title.
    name: String,
    /// The name the index gives the manifest.
    tag: String,
    suite: String,
    variant: String,
    source_date_epoch: u64,
    packages: Vec<String>,
    #[serde(default)]
    dpkg_options: Vec<String>,
    #[serde(default)]
    customize_hooks: Vec<String>,
    #[serde(default)]
    directories: Vec<NewDirectory>,
    #[serde(default)]
    files: Vec<NewFile>,
    #[serde(default)]
    remove: Vec<Removed>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewDirectory {
    path: PathBuf,
    mode: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewFile {
    path: PathBuf,
    mode: u32,
    contents: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Removed {
    path: PathBuf,
}

/// A complete image in the cache.
#[derive(Clone, Debug)]
pub(crate) struct ImageLayout {
    /// The folder with `oci-layout`, `index.json` and `blobs`.
    pub(crate) dir: PathBuf,
    /// The manifest's name in the index.
    pub(crate) reference: String,
    /// The manifest's digest, `sha256:` and 64 digits.
    pub(crate) digest: String,
}

/// Makes the image of a recipe, or finds it in the cache.
pub(crate) fn build(name: &str) -> Result<ImageLayout> {
    let recipes = crate::workspace_root().join("image-recipes");
    let path = recipes.join(format!("{name}.toml"));
    let text = fs::read_to_string(&path).with_context(|| format!("reading the recipe {}", path.display()))?;
    let recipe: Recipe = toml::from_str(&text).with_context(|| format!("reading {}", path.display()))?;
    let key = cache::key([BUILD_VERSION.as_bytes(), text.as_bytes()]);
    let dir = cache::entry("image", &format!("{name}-{key}"), |folder| make(&recipe, folder))?;
    let layout = ImageLayout { digest: manifest_digest(&dir, &recipe.tag)?, reference: recipe.tag, dir };
    println!("image {name}: {}", layout.digest);
    println!("  oci:{}:{}", layout.dir.display(), layout.reference);
    Ok(layout)
}

fn make(recipe: &Recipe, folder: &Path) -> Result<()> {
    deps::ensure(&NEEDS)?;
    if !deps::is_root() {
        deps::ensure(&[NEED_WITHOUT_ROOT])?;
    }
    let started = Instant::now();
    println!("image: making {} {} from {} packages", recipe.name, recipe.tag, recipe.packages.len());
    let mut layout = LayoutWriter::new(folder)?;
    show("packages", &packages_layer(recipe, &mut layout)?);
    show("recipe", &recipe_layer(recipe, &mut layout)?);
    layout.finish(&recipe.name, &recipe.tag)?;
    println!("image: done after {} s", started.elapsed().as_secs());
    Ok(())
}

fn show(name: &str, layer: &Layer) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!(
        "  layer {name:<9}{:>8.2} MiB as tar,{:>7.2} MiB with zstd",
        mib(layer.tar_bytes),
        mib(layer.bytes)
    );
}

/// What the packages make. The archive is never whole in memory or on disk.
fn packages_layer(recipe: &Recipe, layout: &mut LayoutWriter) -> Result<Layer> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap.arg("--format=tar").arg(format!("--variant={}", recipe.variant));
    mmdebstrap.args(["--architectures=amd64", "--components=main"]);
    mmdebstrap.arg(format!("--include={}", recipe.packages.join(",")));
    mmdebstrap.args(recipe.dpkg_options.iter().map(|option| format!("--dpkgopt={option}")));
    mmdebstrap.args(recipe.customize_hooks.iter().map(|hook| format!("--customize-hook={hook}")));
    mmdebstrap.args([&recipe.suite, "-"]);
    mmdebstrap.env("SOURCE_DATE_EPOCH", recipe.source_date_epoch.to_string()).env("LC_ALL", "C");
    let mut child =
        mmdebstrap.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting mmdebstrap")?;
    let mut archive = child.stdout.take().context("mmdebstrap has no output")?;
    let mut layer = layout.layer()?;
    let copied = io::copy(&mut archive, &mut layer);
    drop(archive);
    let status = child.wait().context("waiting for mmdebstrap")?;
    // Its failure is the cause of whatever the copy saw.
    ensure!(status.success(), "mmdebstrap failed ({status})");
    copied.context("writing the layer of the packages")?;
    layout.add(layer)
}

/// What the recipe adds and removes.
fn recipe_layer(recipe: &Recipe, layout: &mut LayoutWriter) -> Result<Layer> {
    let mut layer = layout.layer()?;
    write_recipe_tar(recipe, &mut layer).context("writing the layer of the recipe")?;
    layout.add(layer)
}

fn write_recipe_tar(recipe: &Recipe, out: impl Write) -> Result<()> {
    let mut tar = tar::Builder::new(out);
    let mut append = |kind, path: &Path, mode: u32, contents: &[u8]| {
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(plain && path.file_name().is_some(), "{}: not a path below the root", path.display());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(recipe.source_date_epoch);
        header.set_size(contents.len() as u64);
        Ok(tar.append_data(&mut header, path, contents)?)
    };
    for directory in &recipe.directories {
        append(tar::EntryType::Directory, &directory.path, directory.mode, &[])?;
    }
    for file in &recipe.files {
        // A literal begins on its own line in the recipe; TOML takes that first line break away itself.
        append(tar::EntryType::Regular, &file.path, file.mode, file.contents.as_bytes())?;
    }
    for removed in &recipe.remove {
        // A whiteout (image-spec, layer.md): the empty file .wh.NAME hides NAME of the layers below.
        let name = removed.path.file_name().unwrap_or_default().to_string_lossy();
        append(tar::EntryType::Regular, &removed.path.with_file_name(format!(".wh.{name}")), 0o644, &[])?;
    }
    tar.finish()?;
    Ok(())
}

fn manifest_digest(dir: &Path, tag: &str) -> Result<String> {
    let text = fs::read(dir.join("index.json")).context("reading the image's index.json")?;
    let index: serde_json::Value = serde_json::from_slice(&text)?;
    let named = |manifest: &&serde_json::Value| {
        manifest["annotations"]["org.opencontainers.image.ref.name"].as_str() == Some(tag)
    };
    let manifest = index["manifests"].as_array().and_then(|manifests| manifests.iter().find(named));
    let digest = manifest.and_then(|manifest| manifest["digest"].as_str());
    Ok(digest.with_context(|| format!("index.json has no manifest named {tag}"))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    const RECIPE: &str = r#"
        name = "test"
        tag = "1"
        suite = "bookworm"
        variant = "minbase"
        source_date_epoch = 7
        packages = []
        directories = [{ path = "etc/new", mode = 0o700 }]
        files = [{ path = "etc/new/file", mode = 0o640, contents = "hello" }]
        remove = [{ path = "etc/old" }]
    "#;

    #[test]
    fn skopeo_reads_the_layout() {
        let recipe: Recipe = toml::from_str(RECIPE).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut layout = LayoutWriter::new(folder.path()).unwrap();
        let layer = recipe_layer(&recipe, &mut layout).unwrap();
        let digest = layout.finish("test", "1").unwrap();
        assert_eq!(manifest_digest(folder.path(), "1").unwrap(), digest);
        assert!(manifest_digest(folder.path(), "2").is_err());

        // Copying makes skopeo check each digest and size.
        let copy = folder.path().join("copy");
        let output = Command::new("skopeo")
            .args(["copy", "--insecure-policy"])
            .arg(format!("oci:{}:1", folder.path().display()))
            .arg(format!("dir:{}", copy.display()))
            .output()
            .expect("skopeo is the judge of this test: install the package skopeo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let blob = fs::read(copy.join(layer.digest.trim_start_matches("sha256:"))).unwrap();
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(&zstd::decode_all(&blob[..]).unwrap()[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut contents = String::new();
            entry.read_to_string(&mut contents).unwrap();
            let path = entry.path().unwrap().display().to_string();
            assert_eq!(entry.header().mtime().unwrap(), 7);
            found.insert(path, (entry.header().mode().unwrap(), contents));
        }
        let expected = [("etc/.wh.old", 0o644, ""), ("etc/new", 0o700, ""), ("etc/new/file", 0o640, "hello")];
        let expected = expected.map(|(path, mode, contents)| (path.to_owned(), (mode, contents.to_owned())));
        assert_eq!(found, BTreeMap::from(expected));
    }

    #[test]
    fn recipes_of_the_repository_are_well_formed() {
        let mut count = 0;
        for item in fs::read_dir(crate::workspace_root().join("image-recipes")).unwrap() {
            let path = item.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                let recipe: Recipe = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
                write_recipe_tar(&recipe, io::sink()).unwrap();
                count += 1;
            }
        }
        assert!(count > 0);
    }

    #[test]
    fn a_path_out_of_the_root_is_refused() {
        for path in ["/etc/x", "../x", "etc/../../x", ""] {
            let mut recipe: Recipe = toml::from_str(RECIPE).unwrap();
            recipe.files[0].path = PathBuf::from(path);
            assert!(write_recipe_tar(&recipe, io::sink()).is_err(), "{path:?}");
        }
        assert!(toml::from_str::<Recipe>(&format!("{RECIPE}\nshell = 1")).is_err());
    }
}
