// Conversations, which are kept in this browser only (IndexedDB).

const CONVERSATIONS = "conversations";

let opening;

function database() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("easel", 1);
    request.onupgradeneeded = () =>
      request.result.createObjectStore(CONVERSATIONS, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

/** Run one request in a transaction. Returns its result when the transaction is complete. */
async function run(mode, ask) {
  const transaction = (await database()).transaction(CONVERSATIONS, mode);
  const request = ask(transaction.objectStore(CONVERSATIONS));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });
}

/** Returns all conversations, the one that was used last first. */
export async function conversations() {
  const all = await run("readonly", (store) => store.getAll());
  return all.sort((one, other) => other.used - one.used);
}

export function keep(conversation) {
  return run("readwrite", (store) => store.put(conversation));
}

export function remove(id) {
  return run("readwrite", (store) => store.delete(id));
}

export function removeAll() {
  return run("readwrite", (store) => store.clear());
}
