//! A pod's status, from what its containers do.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, PodCondition, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::container::exit_code;
use super::place::Place;

/// The status after `before`: what has not changed keeps its times.
pub(super) fn of(
    before: &PodStatus,
    spec: Option<&PodSpec>,
    places: &[Place],
    waits_for: Option<&str>,
    node: [IpAddr; 2],
) -> PodStatus {
    let over = |place: &Place| spec.is_some_and(|spec| place.is_over(spec));
    let all_over = !places.is_empty() && places.iter().all(over);
    let ready = waits_for.is_none() && !places.is_empty() && places.iter().all(|place| place.ready);
    let phase = if all_over {
        match places.iter().all(|place| place.last_exit.is_some_and(|exit| exit.success())) {
            true => "Succeeded",
            false => "Failed",
        }
    } else if places.iter().any(|place| place.started.is_some()) {
        "Running"
    } else {
        "Pending"
    };
    let statuses = match waits_for {
        None => places.iter().map(|place| container(place, over(place))).collect(),
        Some(reason) => {
            spec.into_iter().flat_map(|spec| &spec.containers).map(|c| not_yet(c, reason)).collect()
        }
    };
    let conditions =
        [("PodScheduled", true), ("Initialized", true), ("ContainersReady", ready), ("Ready", ready)];
    let host = node.map(|address| address.to_string());
    PodStatus {
        phase: Some(phase.into()),
        conditions: Some(conditions.map(|(type_, is)| condition(before, type_, is)).into()),
        container_statuses: Some(statuses),
        start_time: before.start_time.clone().or_else(|| Some(now())),
        host_ip: host.first().cloned(),
        host_ips: Some(host.map(|ip| HostIP { ip }).into()),
        ..before.clone()
    }
}

fn condition(before: &PodStatus, type_: &str, is: bool) -> PodCondition {
    let status = if is { "True" } else { "False" };
    let same = before.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == status);
    same.cloned().unwrap_or_else(|| PodCondition {
        type_: type_.into(),
        status: status.into(),
        last_transition_time: Some(now()),
        ..PodCondition::default()
    })
}

fn container(place: &Place, over: bool) -> ContainerStatus {
    let image = place.container.image.clone().unwrap_or_default();
    let state = if place.running.is_some() {
        ContainerState {
            running: Some(ContainerStateRunning { started_at: place.started.map(Time) }),
            ..ContainerState::default()
        }
    } else if over {
        ended(place)
    } else {
        let (reason, message) = match &place.refused {
            Some(refused) => ("CreateContainerError", Some(refused.clone())),
            None if place.last_exit.is_some() => ("CrashLoopBackOff", None),
            None => ("ContainerCreating", None),
        };
        waiting(reason, message)
    };
    ContainerStatus {
        name: place.container.name.clone(),
        image_id: image.clone(),
        image,
        container_id: Some("namespaces://".into()),
        ready: place.ready,
        started: Some(place.has_started()),
        restart_count: place.restarts,
        last_state: (place.last_exit.is_some() && !over).then(|| ended(place)),
        state: Some(state),
        ..ContainerStatus::default()
    }
}

fn not_yet(container: &k8s_openapi::api::core::v1::Container, reason: &str) -> ContainerStatus {
    let image = container.image.clone().unwrap_or_default();
    ContainerStatus {
        name: container.name.clone(),
        image_id: String::new(),
        image,
        state: Some(waiting("ContainerCreating", Some(reason.into()))),
        ..ContainerStatus::default()
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = Some(ContainerStateWaiting { reason: Some(reason.into()), message });
    ContainerState { waiting, ..ContainerState::default() }
}

fn ended(place: &Place) -> ContainerState {
    let code = place.last_exit.map_or(0, exit_code);
    let reason = if code == 0 { "Completed" } else { "Error" };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: code,
            reason: Some(reason.into()),
            started_at: place.started.map(Time),
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn now() -> Time {
    // Whole seconds, as the API server keeps them: else what it sends back would differ.
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default())
}
