"""What the demo's chat template is given."""

from app.prompting.messages import shown_conversation, template_messages
from app.prompting.template import find_template
from engine.config import DEMO_MODEL_PATH

TEMPLATE = find_template(str(DEMO_MODEL_PATH), {"bos_token": "<bos>"})


def shown_messages(conversation):
    """Returns the messages of a conversation."""
    return template_messages(shown_conversation(conversation, TEMPLATE), TEMPLATE)
