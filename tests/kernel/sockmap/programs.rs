//! The programs and maps, loaded and pinned.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use snisplice::kernel::{self, Kernel, KernelError, Sockmap};
use snisplice_tests::eventually;

use crate::gateway::{Gateway, in_a_namespace, runtime};
use crate::peers::{Legs, Stream};

/// Pins that are removed whatever becomes of the test: the bpf file system outlives its namespace.
struct Pinned(PathBuf);

impl Drop for Pinned {
    fn drop(&mut self) {
        // Mostly the test itself has.
        let _ = kernel::unload(&self.0);
    }
}

#[test]
fn pinned_maps_are_adopted_by_one_process_and_foreign_ones_by_none() {
    in_a_namespace(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/snisplice-test-{}", std::process::id()));

        let _pinned = Pinned(bpffs.clone());
        assert!(!kernel::unload(&bpffs).unwrap());
        kernel::load_and_pin(&bpffs, 64).unwrap();
        kernel::load_and_pin(&bpffs, 64).unwrap();
        assert!(kernel::is_loaded(&bpffs).unwrap());
        {
            let first = Kernel::open(&bpffs, 128).unwrap();
            let second = Kernel::open(&bpffs, 128).unwrap();
            assert_eq!((first.sockmap().capacity(), second.sockmap().capacity()), (64, 128));
            runtime(async { exchange_once(first.sockmap().clone()).await });
            runtime(async { exchange_once(second.sockmap().clone()).await });
        }
        // A process that another test starts has our descriptors, and with them the lock, until it executes its program.
        let again = eventually("the pins to be free again", || {
            Some(Kernel::open(&bpffs, 128).unwrap()).filter(|again| again.sockmap().capacity() == 64)
        })
        .unwrap();
        runtime(async { exchange_once(again.sockmap().clone()).await });
        drop(again);

        let pins = bpffs.join(format!("v{}/sockmap", lb_common::ABI_VERSION));
        std::fs::remove_file(pins.join(lb_common::sockmap::FLOWS)).unwrap();
        std::fs::rename(pins.join(lb_common::sockmap::EVENTS), pins.join(lb_common::sockmap::FLOWS)).unwrap();
        eventually("foreign pins to be refused", || {
            matches!(Kernel::open(&bpffs, 64), Err(KernelError::ForeignPin { .. })).then_some(())
        })
        .unwrap();

        assert!(kernel::unload(&bpffs).unwrap());
        assert!(!kernel::is_loaded(&bpffs).unwrap());
        assert!(!bpffs.exists());
    });
}

#[test]
fn a_user_without_capabilities_is_told_so() {
    in_a_namespace(|| {
        let refused = thread::spawn(|| {
            // Of this thread only.
            for capability in [caps::Capability::CAP_SYS_ADMIN, caps::Capability::CAP_BPF] {
                caps::drop(None, caps::CapSet::Effective, capability).unwrap();
            }
            Kernel::open(Path::new("/nonexistent"), 2).err()
        });
        assert!(matches!(refused.join().unwrap(), Some(KernelError::NotPermitted(_))));
    });
}

async fn exchange_once(sockmap: Arc<Sockmap>) {
    let gateway = Gateway { sockmap };
    let (client, server, carry) = gateway.carry_these(Legs::new()).await;
    let sends = Stream { seed: 4, length: 100_000 };
    let (client, server) = (client.exchange(sends, sends), server.exchange(sends, sends));
    let carried = carry.await.unwrap();
    client.join().unwrap();
    server.join().unwrap();
    assert_eq!((carried.demoted, carried.by_kernel), (None, 200_000));
}
