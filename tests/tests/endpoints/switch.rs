//! A vhost-user server as a switch in user space is one, on rust-vmm's own half of the protocol: frames
//! go between the memory of the VM and a tap, and QEMU touches none of them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vhost::vhost_user::Error::Disconnected;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::Error as DaemonError;
use vhost_user_backend::{
    ShutdownHandle, VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT,
};
use virtio_queue::{QueueT, Reader, Writer};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::relay::relay;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The queues of a card with one pair: what the guest is to receive, what it has sent.
const TO_GUEST: u16 = 0;
const FROM_GUEST: u16 = 1;
const QUEUES: usize = 2;
/// Beyond the queues and the event by which a thread of the server ends.
const TAP: u16 = 3;

/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;

/// The headers before a frame: of the card, with the number of buffers it fills at its end; of the tap.
const CARD_HEADER: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const TAP_HEADER: usize = 10;

/// The server of one card; it ends with its connection, or with this.
pub struct Switch {
    serving: Option<JoinHandle<()>>,
    connection: std::sync::mpsc::Receiver<ShutdownHandle>,
    frames: Arc<Mutex<[usize; QUEUES]>>,
}

impl Switch {
    /// Listens on `socket`; the far end of the card that comes is `tap`.
    pub fn listen(socket: &Path, tap: OwnedFd) -> Self {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let frames = Arc::new(Mutex::new([0; QUEUES]));
        let tap = File::from(tap);
        let port = Port {
            tap: tap.try_clone().unwrap(),
            memory: memory.clone(),
            frames: Arc::clone(&frames),
            end: new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap(),
        };
        let behind = socket.with_extension("behind");
        let mut listener = Listener::new(&behind, true).unwrap();
        let front = UnixListener::bind(socket).unwrap();
        let relaying = std::thread::spawn(move || {
            let (qemu, _) = front.accept().unwrap();
            relay(qemu, UnixStream::connect(behind).unwrap());
        });
        let (tell, connection) = std::sync::mpsc::channel();
        let serving = std::thread::spawn(move || {
            let port = Arc::new(Mutex::new(port));
            let mut daemon = VhostUserDaemon::new("switch".to_owned(), port, memory).unwrap();
            for handler in daemon.get_epoll_handlers() {
                handler.register_listener(tap.as_raw_fd(), EventSet::IN, TAP.into()).unwrap();
            }
            daemon.start(&mut listener).unwrap();
            tell.send(daemon.shutdown_handle().unwrap()).unwrap();
            let ended = daemon.wait();
            relaying.join().unwrap();
            assert!(
                matches!(ended, Ok(()) | Err(DaemonError::HandleRequest(Disconnected))),
                "{ended:?}"
            );
        });
        Self { serving: Some(serving), connection, frames }
    }

    /// How many frames went to the guest, and came from it.
    pub fn frames(&self) -> [usize; QUEUES] {
        *self.frames.lock().unwrap()
    }

    /// Waits until QEMU has let go of it.
    pub fn end(mut self) {
        self.serving.take().unwrap().join().unwrap();
    }

    /// Dies, as seen from QEMU.
    pub fn hang_up(self) {
        self.connection.recv().unwrap().shutdown();
        self.end();
    }
}

/// A port of it.
struct Port {
    tap: File,
    memory: Memory,
    frames: Arc<Mutex<[usize; QUEUES]>>,
    end: (EventConsumer, EventNotifier),
}

impl Port {
    /// What the guest has sent goes out by the tap.
    fn drain(&mut self, queue: &VringRwLock) {
        let memory = self.memory.memory();
        let mut state = queue.get_mut();
        let queue = state.get_queue_mut();
        while let Some(chain) = queue.pop_descriptor_chain(memory.clone()) {
            let head = chain.head_index();
            let mut frame = Vec::new();
            let mut reader: Reader<'_, ()> = Reader::new(&*memory, chain).unwrap();
            reader.read_to_end(&mut frame).unwrap();
            // Both begin alike; the tap's is shorter by the number of buffers.
            frame.drain(TAP_HEADER..CARD_HEADER.len());
            let _ = self.tap.write(&frame);
            queue.add_used(&*memory, head, 0).unwrap();
            self.frames.lock().unwrap()[usize::from(FROM_GUEST)] += 1;
        }
    }

    /// What came by the tap goes to the guest; dropped, as by any switch, if it has no room.
    fn fill(&mut self, queue: &VringRwLock) {
        let memory = self.memory.memory();
        let mut frame = [0; 65_536 + TAP_HEADER];
        while let Ok(length) = self.tap.read(&mut frame) {
            let mut state = queue.get_mut();
            let queue = state.get_queue_mut();
            if !queue.ready() {
                continue;
            }
            let Some(chain) = queue.pop_descriptor_chain(memory.clone()) else {
                continue;
            };
            let head = chain.head_index();
            let mut writer: Writer<'_, ()> = Writer::new(&*memory, chain).unwrap();
            writer.write_all(&CARD_HEADER).unwrap();
            writer.write_all(&frame[TAP_HEADER..length]).unwrap();
            let written = writer.bytes_written().try_into().unwrap();
            queue.add_used(&*memory, head, written).unwrap();
            self.frames.lock().unwrap()[usize::from(TO_GUEST)] += 1;
        }
    }
}

impl VhostUserBackendMut for Port {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QUEUES
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::empty()
    }

    fn set_event_idx(&mut self, enabled: bool) {
        assert!(!enabled, "it was not offered");
    }

    fn update_memory(&mut self, memory: Memory) -> std::io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some((self.end.0.try_clone().unwrap(), self.end.1.try_clone().unwrap()))
    }

    fn handle_event(
        &mut self,
        event: u16,
        _set: EventSet,
        queues: &[VringRwLock],
        _thread: usize,
    ) -> std::io::Result<()> {
        let queue = match event {
            FROM_GUEST => {
                self.drain(&queues[usize::from(FROM_GUEST)]);
                FROM_GUEST
            }
            TAP => {
                self.fill(&queues[usize::from(TO_GUEST)]);
                TO_GUEST
            }
            // It has room again: what comes next will find it.
            _ => return Ok(()),
        };
        queues[usize::from(queue)].signal_used_queue()
    }
}
