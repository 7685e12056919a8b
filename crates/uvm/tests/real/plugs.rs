//! Shares, pipes and PMEM on a VM that runs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use coracle_uvm::{UtilityVm, UvmError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use crate::support::{Place, Started, chain, image, root_disk, servers, sh, within};

async fn started(place: &Place) -> Started {
    place
        .started(|o| {
            o.host.cold_disks = vec![root_disk(o)];
            o.host.share_memory = true;
            o.vpmem_device_count = 2;
            o.vpmem_size_bytes = 64 << 20;
        })
        .await
}

/// A directory with a file, a folder, and links that lead out of it.
fn tree(folder: &Path) -> String {
    let tree = folder.join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("name"), "tree").unwrap();
    fs::write(tree.join("sub/below"), "below").unwrap();
    fs::write(folder.join("secret"), "secret").unwrap();
    symlink("../secret", tree.join("out")).unwrap();
    symlink(folder.join("secret"), tree.join("far")).unwrap();
    symlink("name", tree.join("near")).unwrap();
    tree.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_of_both_kinds_read_write_stack_and_lead_nowhere_else() {
    let place = Place::new();
    let started = started(&place).await;
    let vm = &started.vm;
    let tree = tree(place.path());

    // 9P: reads, writes, restriction, read-only.
    let error = vm.add_plan9(&tree, "", false, false, &[]).await.unwrap_err();
    assert_eq!(error.to_string(), "uvmPath must be passed to AddPlan9");
    let share = vm.add_plan9(&tree, "/run/mounts/9", false, false, &[]).await.unwrap();
    assert_eq!(share.name(), "0");
    exercise(vm, "/run/mounts/9", &tree).await;
    share.release().await.unwrap();
    assert!(matches!(share.release().await, Err(UvmError::NotAttached)));
    let one = vm.add_plan9(&tree, "/run/mounts/one", true, true, &["name"]).await.unwrap();
    assert_eq!(sh(vm, "ls /run/mounts/one; cat /run/mounts/one/name").await, "name\ntree");
    let hidden = sh(vm, "cat /run/mounts/one/sub/below 2>&1 || true").await;
    assert!(hidden.contains("No such file"), "{hidden}");
    let written = sh(vm, "echo x 2>&1 > /run/mounts/one/name || echo refused").await;
    assert!(written.contains("refused"), "{written}");
    one.release().await.unwrap();

    // The seed's TestPlan9: one directory 64 times at one path, and 64 removes.
    let mut stacked = Vec::new();
    for _ in 0..64 {
        stacked.push(vm.add_plan9(&tree, "/run/mounts/stack", true, false, &[]).await.unwrap());
    }
    assert_eq!(sh(vm, "grep -c /run/mounts/stack /proc/mounts").await, "64\n");
    for share in stacked {
        share.release().await.unwrap();
    }
    assert_eq!(sh(vm, "ls /run/mounts").await, "");
    assert_eq!(fs::read_to_string(Path::new(&tree).join("sub/below")).unwrap(), "below");

    // virtio-fs: the same, a read-only one, and a single file.
    let share = vm.add_virtiofs(&tree, "/run/mounts/v", false).await.unwrap();
    exercise(vm, "/run/mounts/v", &tree).await;
    assert!(!servers("virtiofsd", place.path()).is_empty());
    share.release().await.unwrap();
    assert_eq!(servers("virtiofsd", place.path()).len(), 0);
    let share = vm.add_virtiofs(&tree, "/run/mounts/vr", true).await.unwrap();
    // Remounted writable by the guest, it still is not on the host.
    let written =
        "mount -o remount,rw /run/mounts/vr; echo x 2>&1 > /run/mounts/vr/name || echo refused";
    assert!(sh(vm, written).await.contains("refused"));
    assert_eq!(sh(vm, "cat /run/mounts/vr/name").await, "tree");
    share.release().await.unwrap();
    let file = format!("{tree}/name");
    let share = vm.add_virtiofs(&file, "/run/mounts/vf", false).await.unwrap();
    assert_eq!(share.uvm_path, "/run/mounts/vf/name");
    let seen = sh(vm, "ls /run/mounts/vf; echo new > /run/mounts/vf/name").await;
    assert_eq!((seen.as_str(), fs::read_to_string(&file).unwrap().as_str()), ("name\n", "new\n"));
    share.release().await.unwrap();

    // What cannot be shared says so, and leaves nothing.
    for error in [
        vm.add_virtiofs("/no/such", "/run/mounts/x", false).await.map(drop).unwrap_err(),
        vm.add_plan9("/no/such", "/run/mounts/x", false, false, &[]).await.map(drop).unwrap_err(),
    ] {
        assert!(chain(&error).contains("No such file"), "{}", chain(&error));
        assert_eq!(error.code(), "E-SHARE");
    }
    assert_eq!(
        (servers("virtiofsd", place.path()).len(), sh(vm, "ls /run/mounts").await),
        (0, String::new())
    );
    started.close().await;
}

/// What every share that can be written to does.
async fn exercise(vm: &UtilityVm, at: &str, host: &str) {
    let inside = |path: &str| format!("{at}/{path}");
    assert_eq!(sh(vm, &format!("cat {at}/name {at}/sub/below")).await, "treebelow");
    let script = format!(
        "cd {at} && mkdir -p a/b && echo hello > a/b/file && mv a/b/file a/file && \
         ln -s file a/link && ln a/file a/hard && chmod 640 a/file && cat a/link && \
         dd if=/dev/zero of=a/big bs=1000 count=3000 2>/dev/null && \
         dd if=/dev/zero of=a/big bs=1 seek=5000000 count=0 2>/dev/null && rm a/hard && rmdir a/b && \
         ls a && stat -c %a a/file && stat -c %s a/big"
    );
    assert_eq!(sh(vm, &script).await, "hello\nbig\nfile\nlink\n640\n5000000\n");
    assert_eq!(fs::read_to_string(Path::new(host).join("a/file")).unwrap(), "hello\n");
    assert_eq!(fs::metadata(Path::new(host).join("a/big")).unwrap().len(), 5_000_000);
    // Links are the guest's to follow, in its own tree.
    let out = sh(vm, &format!("cat {} 2>&1 || true", inside("out"))).await;
    assert!(!out.contains("secret\n") && out.contains("No such file"), "{out}");
    let far = sh(vm, &format!("cat {} 2>&1 || true", inside("far"))).await;
    assert!(far.contains("No such file"), "{far}");
    assert_eq!(sh(vm, &format!("cat {}", inside("near"))).await, "tree");
    sh(vm, &format!("rm -r {at}/a")).await;
    assert!(!Path::new(host).join("a").exists());
}

/// A folder with a static program that sends its standard input to a unix socket, half-closes, and
/// prints the answer on a line.
fn ask_tool(folder: &Path) -> String {
    const SOURCE: &str = r#"
        #include <stdio.h>
        #include <string.h>
        #include <sys/socket.h>
        #include <sys/un.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            struct sockaddr_un at = { .sun_family = AF_UNIX };
            strncpy(at.sun_path, argv[1], sizeof at.sun_path - 1);
            int s = socket(AF_UNIX, SOCK_STREAM, 0);
            if (connect(s, (struct sockaddr *)&at, sizeof at)) return 1;
            char b[4096], answer[4096];
            ssize_t n, have = 0;
            while ((n = read(0, b, sizeof b)) > 0) if (write(s, b, n) != n) return 1;
            shutdown(s, SHUT_WR);
            while ((n = read(s, answer + have, sizeof answer - 1 - have)) > 0) have += n;
            if (have == 0) return 1;
            answer[have++] = '\n';
            return write(1, answer, have) != have;
        }"#;
    let tools = folder.join("tools");
    fs::create_dir(&tools).unwrap();
    fs::write(tools.join("ask.c"), SOURCE).unwrap();
    let built = Command::new("gcc")
        .args(["-static", "-o"])
        .args([tools.join("ask"), tools.join("ask.c")])
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    tools.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_carries_many_connections_each_with_its_own_ends() {
    let place = Place::new();
    let started = started(&place).await;
    let vm = &started.vm;
    // Longer than a socket's address may be.
    let folder = place.path().join("x".repeat(90)).join("y".repeat(90));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("server.sock");
    let short = place.path().join("s.sock");
    let server = UnixListener::bind(&short).unwrap();
    fs::rename(&short, &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let host = path.to_str().unwrap();
    let pipe = vm.add_pipe_at(host, "/run/sockets/db.sock").await.unwrap();
    assert_eq!((pipe.host_path.as_str(), pipe.uvm_path.as_str()), (host, "/run/sockets/db.sock"));
    assert!(matches!(vm.add_pipe(host).await, Err(UvmError::AlreadyAttached)));

    // The server answers when it has read to the end: half-close must reach it.
    let serve = |server: UnixListener, answer: &'static str, count: usize| {
        tokio::spawn(async move {
            for _ in 0..count {
                let (mut stream, _) = server.accept().await.unwrap();
                tokio::spawn(async move {
                    let mut asked = String::new();
                    stream.read_to_string(&mut asked).await.unwrap();
                    stream.write_all(format!("{answer} {asked}").as_bytes()).await.unwrap();
                    stream.shutdown().await.unwrap();
                });
            }
            server
        })
    };
    let serving = serve(server, "first", 8);
    let tools =
        vm.add_plan9(&ask_tool(place.path()), "/run/tools", true, false, &[]).await.unwrap();
    let ask = "for n in 1 2 3 4 5 6 7 8; do (printf $n | /run/tools/ask /run/sockets/db.sock) & done; wait";
    let mut answers: Vec<String> = sh(vm, ask).await.lines().map(str::to_owned).collect();
    answers.sort();
    let expected: Vec<String> = (1..=8).map(|n| format!("first {n}")).collect();
    assert_eq!(answers, expected);

    // The server goes and comes back; nobody has to tell the guest.
    drop(within("the server's end", serving).await.unwrap());
    fs::remove_file(&path).unwrap();
    let nobody = sh(vm, "printf x | /run/tools/ask /run/sockets/db.sock || true").await;
    assert_eq!(nobody, "");
    let again = UnixListener::bind(&short).unwrap();
    fs::rename(&short, &path).unwrap();
    let serving = serve(again, "second", 1);
    assert_eq!(sh(vm, "printf x | /run/tools/ask /run/sockets/db.sock").await, "second x\n");
    drop(serving.await.unwrap());

    tools.release().await.unwrap();
    vm.remove_pipe(host).await.unwrap();
    assert!(matches!(vm.remove_pipe(host).await, Err(UvmError::NotAttached)));
    assert_eq!(sh(vm, "ls /run/sockets").await, "");
    let error = vm.add_pipe("/no/such.sock").await.unwrap_err();
    assert!(chain(&error).contains("No such file"), "{}", chain(&error));
    let error = vm.add_pipe("/etc/passwd").await.unwrap_err();
    assert!(chain(&error).contains("no unix socket"), "{}", chain(&error));
    started.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pmem_is_mapped_counted_and_parked() {
    let place = Place::new();
    let started = started(&place).await;
    let vm = &started.vm;
    let (a, b, c) = (image(place.path(), "a"), image(place.path(), "b"), image(place.path(), "c"));
    let large = place.path().join("large");
    fs::File::create(&large).unwrap().set_len((64 << 20) + 1).unwrap();
    let large = large.to_str().unwrap();

    // The seed's TestVPMEM: one file 128 times is one device.
    for _ in 0..128 {
        assert_eq!(vm.add_vpmem(&a).await.unwrap(), "/run/layers/p0");
    }
    assert_eq!(sh(vm, "cat /run/layers/p0/name").await, "a");
    assert!(sh(vm, "grep /run/layers/p0 /proc/mounts").await.contains("dax"));
    assert_eq!(sh(vm, "ls -d /sys/block/pmem* | wc -l").await, "1\n");
    assert!(matches!(vm.add_vpmem(large).await, Err(UvmError::MaxVpmemLayerSize)));
    assert_eq!(vm.add_vpmem(&b).await.unwrap(), "/run/layers/p1");
    assert_eq!(sh(vm, "cat /run/layers/p1/name").await, "b");
    // The size is looked at before the slots.
    assert!(matches!(vm.add_vpmem(large).await, Err(UvmError::MaxVpmemLayerSize)));
    assert!(matches!(vm.add_vpmem(&c).await, Err(UvmError::NoAvailableLocation)));
    // What a layer that did not fit falls back to.
    let mount = vm.add_scsi(&c, "/run/mounts/c", true, Default::default()).await.unwrap();
    assert_eq!(sh(vm, "cat /run/mounts/c/name").await, "c");
    mount.release().await.unwrap();

    for _ in 0..127 {
        vm.remove_vpmem(&a).await.unwrap();
    }
    assert_eq!((sh(vm, "cat /run/layers/p0/name").await.as_str(), vm.parked_vpmem()), ("a", 0));
    vm.remove_vpmem(&a).await.unwrap();
    assert!(matches!(vm.remove_vpmem(&a).await, Err(UvmError::NotAttached)));
    assert_eq!((sh(vm, "ls /run/layers").await.as_str(), vm.parked_vpmem()), ("p1\n", 1));
    // Parked: counted, not given to another, and had again by the same file.
    assert!(matches!(vm.add_vpmem(&c).await, Err(UvmError::NoAvailableLocation)));
    assert_eq!(vm.add_vpmem(&a).await.unwrap(), "/run/layers/p0");
    assert_eq!((sh(vm, "cat /run/layers/p0/name").await.as_str(), vm.parked_vpmem()), ("a", 0));
    assert!(matches!(vm.add_vpmem("/no/such").await, Err(UvmError::Source { .. })));
    started.close().await;
}
