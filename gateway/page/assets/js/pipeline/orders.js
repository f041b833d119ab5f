// Orders to stage servers. The gateway refuses those that would do harm, in words that are shown here.
import { html, signal, useEffect, useRef, useSignal } from "../lib.js";
import { call } from "../api.js";
import { Problem, announce } from "../ui.js";
import { ROLES } from "./stages.js";

const ORDERS = {
  pin: { title: "Pin", words: (name) => `Plans leave the roles of ${name} alone until it is unpinned.`, button: "Pin" },
  unpin: { title: "Unpin", words: (name) => `Plans may change the roles of ${name} again.`, button: "Unpin" },
  drain: { title: "Drain", words: (name) => `${name} gets no new work; its process ends when its work is done.`, button: "Drain" },
  roles: { title: "Roles of", words: (name) => `${name} will hold these roles and no others.`, button: "Give these roles" },
};

const asked = signal(null); // {what, server}

export function askOrder(what, server) {
  asked.value = { what, server };
}

export function OrderDialog() {
  const dialog = useRef(null);
  const order = asked.value;
  useEffect(() => {
    if (order && !dialog.current.open) dialog.current.showModal();
    if (!order && dialog.current.open) dialog.current.close();
  }, [order]);
  return html`
    <dialog ref=${dialog} aria-label="Order" onClose=${() => (asked.value = null)}>
      ${order && html`<${OrderForm} key=${`${order.what} ${order.server.name}`} ...${order} />`}
    </dialog>`;
}

function OrderForm({ what, server }) {
  const problem = useSignal("");
  const { title, words, button } = ORDERS[what];
  const submit = async (event) => {
    event.preventDefault();
    const roles = [...event.target.querySelectorAll("input:checked")].map((box) => box.value);
    try {
      await give(what, server, roles);
      announce(`${title} ${server.name}: ordered`);
      asked.value = null;
    } catch (error) {
      problem.value = error.message;
    }
  };
  return html`
    <form onSubmit=${submit}>
      <h2>${title} ${server.name}</h2>
      <p>${words(server.name)}</p>
      ${what === "roles" && html`
        <fieldset><legend>Roles</legend>
          ${server.capable.map((role) => html`
            <label class="check"><input type="checkbox" value=${role} defaultChecked=${server.roles.includes(role)} /> ${ROLES[role]}</label>`)}
        </fieldset>`}
      <${Problem} text=${problem.value} />
      <div class="row">
        <button type="submit" class="primary">${button}</button>
        <button type="button" onClick=${() => (asked.value = null)}>Cancel</button>
      </div>
    </form>`;
}

function give(what, server, roles) {
  const path = `admin/servers/${encodeURIComponent(server.name)}/${what}`;
  const options = { kind: "admin", method: "POST" };
  if (what !== "roles") return call(path, options);
  return call(path, { ...options, headers: { "content-type": "application/json" }, body: JSON.stringify({ roles }) });
}
