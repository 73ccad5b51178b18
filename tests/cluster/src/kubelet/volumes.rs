//! The files of a pod's volumes, made as the kubelet's: `..data` leads to a directory that is replaced as a whole.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccount, Volume, VolumeProjection,
};
use kube::ResourceExt;
use kube::api::{Api, PostParams};

use super::container::pod_field;
use super::node::ThisNode;

/// The files of a volume: path inside, content.
type Files = BTreeMap<String, Vec<u8>>;

/// Makes, or renews, every volume of a pod; where each is, by its name. An error says what is not there yet.
pub(super) async fn prepare(node: &ThisNode, pod: &Pod) -> Result<BTreeMap<String, PathBuf>> {
    let mut places = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let place = place(node, pod, volume).await.with_context(|| format!("volume {}", volume.name))?;
        places.insert(volume.name.clone(), place);
    }
    Ok(places)
}

async fn place(node: &ThisNode, pod: &Pod, volume: &Volume) -> Result<PathBuf> {
    if let Some(path) = &volume.host_path {
        let place = node.host_path(&path.path);
        if path.type_.as_deref() != Some("Socket") && path.type_.as_deref() != Some("File") {
            fs::create_dir_all(&place)?;
        }
        return Ok(place);
    }
    let place = node.pod_directory(pod).join("volumes").join(&volume.name);
    fs::create_dir_all(&place)?;
    let (files, mode) = if volume.empty_dir.is_some() {
        return Ok(place);
    } else if let Some(source) = &volume.config_map {
        let files = config_map(node, pod, &source.name, source.items.as_deref(), source.optional).await?;
        (files, source.default_mode)
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().context("a secret has a name")?;
        (secret(node, pod, name, source.items.as_deref(), source.optional).await?, source.default_mode)
    } else if let Some(source) = &volume.downward_api {
        (downward(pod, source.items.iter().flatten()), source.default_mode)
    } else if let Some(source) = &volume.projected {
        let mut files = Files::new();
        for source in source.sources.iter().flatten() {
            files.extend(projection(node, pod, source, &place).await?);
        }
        (files, source.default_mode)
    } else {
        bail!("this kubelet has no volumes of this type");
    };
    write(&place, &files, mode.unwrap_or(0o644))?;
    Ok(place)
}

async fn projection(node: &ThisNode, pod: &Pod, source: &VolumeProjection, place: &Path) -> Result<Files> {
    if let Some(source) = &source.config_map {
        config_map(node, pod, &source.name, source.items.as_deref(), source.optional).await
    } else if let Some(source) = &source.secret {
        secret(node, pod, &source.name, source.items.as_deref(), source.optional).await
    } else if let Some(source) = &source.downward_api {
        Ok(downward(pod, source.items.iter().flatten()))
    } else if let Some(source) = &source.service_account_token {
        // A token lives for an hour; a renewed volume keeps the one it has for half of that.
        let kept = place.join(&source.path);
        let age = fs::metadata(&kept).and_then(|kept| Ok(kept.modified()?.elapsed().unwrap_or_default()));
        let content = match age {
            Ok(age) if age.as_secs() < 1800 => fs::read(&kept)?,
            _ => token(node, pod, source.audience.clone(), source.expiration_seconds).await?,
        };
        Ok(Files::from([(source.path.clone(), content)]))
    } else {
        bail!("this kubelet has no projections of this type");
    }
}

async fn token(
    node: &ThisNode,
    pod: &Pod,
    audience: Option<String>,
    seconds: Option<i64>,
) -> Result<Vec<u8>> {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    let accounts: Api<ServiceAccount> = namespaced(node, pod);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.into_iter().collect(),
            expiration_seconds: seconds,
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name.clone(),
                uid: pod.uid(),
            }),
        },
        ..TokenRequest::default()
    };
    let account = account.as_deref().unwrap_or("default");
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    Ok(answer.status.context("a token")?.token.into_bytes())
}

async fn config_map(
    node: &ThisNode,
    pod: &Pod,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
) -> Result<Files> {
    let map: Api<ConfigMap> = namespaced(node, pod);
    let Some(map) = map.get_opt(name).await? else { return absent("ConfigMap", name, optional) };
    let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
    let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
    select(text.chain(binary).collect(), items)
}

async fn secret(
    node: &ThisNode,
    pod: &Pod,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
) -> Result<Files> {
    let secret: Api<Secret> = namespaced(node, pod);
    let Some(secret) = secret.get_opt(name).await? else { return absent("Secret", name, optional) };
    select(secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect(), items)
}

fn absent(kind: &str, name: &str, optional: Option<bool>) -> Result<Files> {
    match optional {
        Some(true) => Ok(Files::new()),
        _ => bail!("there is no {kind} {name}"),
    }
}

fn namespaced<K>(node: &ThisNode, pod: &Pod) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
{
    Api::namespaced(node.client.clone(), &pod.namespace().unwrap_or_default())
}

/// The named items, or all.
fn select(mut all: Files, items: Option<&[KeyToPath]>) -> Result<Files> {
    let Some(items) = items else { return Ok(all) };
    let select = |item: &KeyToPath| {
        let content = all.remove(&item.key).with_context(|| format!("there is no key {}", item.key))?;
        Ok((item.path.clone(), content))
    };
    items.iter().map(select).collect()
}

fn downward<'a>(pod: &Pod, items: impl Iterator<Item = &'a DownwardAPIVolumeFile>) -> Files {
    let content = |item: &DownwardAPIVolumeFile| {
        let field = item.field_ref.as_ref().map(|field| pod_field(pod, &field.field_path));
        (item.path.clone(), field.unwrap_or_default().into_bytes())
    };
    items.map(content).collect()
}

/// Replaces all files at once: a new directory, and `..data` leads to it. Does nothing if they are the same.
fn write(place: &Path, files: &Files, mode: i32) -> Result<()> {
    let data = place.join("..data");
    if files.iter().all(|(path, content)| fs::read(data.join(path)).is_ok_and(|there| there == *content))
        && data.exists()
    {
        return Ok(());
    }
    let before = fs::read_link(&data).ok();
    let generation = (0..).map(|n| format!("..{n}")).find(|name| !place.join(name).exists());
    let generation = generation.context("a name that is free")?;
    for (path, content) in files {
        let file = place.join(&generation).join(path);
        fs::create_dir_all(file.parent().context("a file lies in a directory")?)?;
        fs::write(&file, content)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(mode.cast_unsigned()))?;
    }
    fs::create_dir_all(place.join(&generation))?;
    let next = place.join("..data_tmp");
    symlink(&generation, &next)?;
    fs::rename(&next, &data)?;
    for path in files.keys() {
        let top = path.split('/').next().unwrap_or_default();
        if fs::symlink_metadata(place.join(top)).is_err() {
            symlink(Path::new("..data").join(top), place.join(top))?;
        }
    }
    if let Some(before) = before {
        fs::remove_dir_all(place.join(before))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use snisplice_tests::TempDir;

    #[test]
    fn files_are_replaced_by_a_change_of_one_link() {
        let place = TempDir::new().unwrap();
        let files =
            |content: &str| Files::from([("a".into(), content.into()), ("b/c".into(), "same".into())]);
        write(place.path(), &files("old"), 0o600).unwrap();
        let first = fs::read_link(place.join("..data")).unwrap();
        write(place.path(), &files("old"), 0o600).unwrap();
        assert_eq!(fs::read_link(place.join("..data")).unwrap(), first);
        write(place.path(), &files("new"), 0o600).unwrap();
        assert_ne!(fs::read_link(place.join("..data")).unwrap(), first);
        assert_eq!(fs::read_to_string(place.join("a")).unwrap(), "new");
        assert_eq!(fs::read_to_string(place.join("b/c")).unwrap(), "same");
        assert_eq!(fs::metadata(place.join("a")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!place.join(first).exists());
    }
}
