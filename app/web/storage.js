// The browser's two storages of short texts. Where it denies them, they last as long as the page.

function storage(name) {
  try {
    return window[name];
  } catch {
    const texts = new Map();
    return {
      getItem: (key) => texts.get(key) ?? null,
      setItem: (key, text) => texts.set(key, text),
      removeItem: (key) => texts.delete(key),
    };
  }
}

export const forBrowser = storage("localStorage");
export const forTab = storage("sessionStorage");
