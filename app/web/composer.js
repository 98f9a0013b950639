// The box in which a person writes: text, pictures, send and stop.

import { button, h, icon } from "./dom.js";
import { pictureUrl } from "./pictures.js";

export class Composer {
  /** `onsend(text, images)` and `onstop()` are called when the person asks for them. */
  constructor(element, { onsend, onstop }) {
    this.images = [];
    this.onsend = onsend;
    this.input = h("textarea", {
      id: "message",
      rows: 1,
      placeholder: "Write a message",
      "aria-label": "Message",
      enterkeyhint: "send",
      onkeydown: (event) => this.key(event),
      onpaste: (event) => this.take(event, event.clipboardData),
    });
    this.previews = h("div", { class: "previews" });
    this.file = h("input", {
      type: "file",
      accept: "image/*",
      multiple: true,
      hidden: true,
      onchange: () => this.attach(this.file.files),
    });
    this.attachButton = button("attach", "Attach images", () => this.file.click(), {
      hidden: true,
    });
    this.sendButton = h(
      "button",
      { class: "button round primary", "aria-label": "Send", title: "Send (Enter)" },
      icon("send"),
    );
    this.stopButton = h(
      "button",
      {
        type: "button",
        class: "button round",
        "aria-label": "Stop",
        title: "Stop (Esc)",
        onclick: onstop,
        hidden: true,
      },
      icon("stop"),
    );
    this.form = h(
      "form",
      {
        class: "composer",
        onsubmit: (event) => {
          event.preventDefault();
          this.send();
        },
        ondragover: (event) => event.preventDefault(),
        ondrop: (event) => this.take(event, event.dataTransfer),
      },
      this.previews,
      h(
        "div",
        { class: "composer-line" },
        this.attachButton,
        this.file,
        this.input,
        this.stopButton,
        this.sendButton,
      ),
    );
    this.hintLine = h("p", { class: "hint" });
    this.hint = "Enter sends, Shift+Enter begins a line, Esc stops. Chats stay in this browser.";
    element.append(this.form, this.hintLine);
  }

  set hint(text) {
    this.hintLine.textContent = text;
  }

  focus() {
    this.input.focus();
  }

  /** Allow pictures if the model takes them. */
  set takesImages(takes) {
    this.attachButton.hidden = !takes;
  }

  /** Offer to stop instead of to send while an answer is being made. */
  set busy(busy) {
    if (busy && document.activeElement === this.sendButton) this.input.focus();
    this.stopButton.hidden = !busy;
    this.sendButton.hidden = busy;
  }

  key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.send();
  }

  send() {
    const text = this.input.value;
    if (this.sendButton.hidden || (!text.trim() && !this.images.length)) return;
    const images = this.images;
    this.input.value = "";
    this.images = [];
    this.showImages();
    this.onsend(text, images);
  }

  /** Attach the pictures that are pasted or dropped. Everything else is left to the browser. */
  take(event, { files }) {
    if (this.attachButton.hidden || !files.length) return;
    event.preventDefault();
    this.attach(files);
  }

  async attach(files) {
    const pictures = [...files].filter((file) => file.type.startsWith("image/"));
    const urls = await Promise.all(pictures.map(pictureUrl));
    this.images = [...this.images, ...urls]; // others may have come meanwhile
    this.file.value = "";
    this.showImages();
  }

  showImages() {
    this.previews.replaceChildren(
      ...this.images.map((url, index) =>
        h(
          "span",
          { class: "preview" },
          h("img", { src: url, alt: `Image ${index + 1}` }),
          button("close", `Remove image ${index + 1}`, () => {
            this.images = this.images.toSpliced(index, 1);
            this.showImages();
          }),
        ),
      ),
    );
  }
}
