"""All reasons for which a layer or a group of channels is left as it was."""

from __future__ import annotations

from enum import Enum
from string import Formatter

from norton_plugin.errors import message_of
from norton_plugin.reasons.cause import Cause
from norton_plugin.reasons.entry import Entry, left


# fmt: off
class Reason(Enum):
    """Why something was left as it was. Codes are stable: files hold them; templates may be reworded at any time."""

    # What keeps its channels because of what it is, or because the user asked for it.
    MODEL_OUTPUT = left("model-output", "its channels are outputs of the model",
        advice="nothing to do: whoever uses the model expects outputs of this width",
        example="fc of timm:resnet18")
    POSITIONS_OR_HEADS = left("positions-or-heads", "its outputs are positions or heads, not channels",
        advice="nothing to do: positions and attention heads are not pruned",
        example="tokens of timm:mixer_b16_224; points of mmdet:deformable_detr/deformable-detr_r50_16xb2-50e_coco.py")
    SINGLE_CHANNEL = left("single-channel", "it has a single channel",
        advice="nothing to do: a layer needs at least one channel",
        example="a convolution with out_channels=1, such as the last one of a segmentation head for one class")
    NOT_RUN = left("not-run", "the example does not run it",
        advice="give example_inputs that run it, if it is needed; otherwise remove the layer from the model",
        example="the auxiliary classifiers aux1 and aux2 of torchvision:googlenet")
    ALL_KEPT = left("all-kept", "all its channels are to be kept, as the recipe or the plan of a budget says",
        advice="lower pruning.keep, or its entry in pruning.keeps, or the budget, if it is to be pruned",
        example="any layer whose entry in pruning.keeps is 1")
    ROUNDED = left("rounded", "{size} channels at keep {keep:g} come to {size} in multiples of {round_to} (round_to)",
        advice="lower pruning.round_to or pruning.keep; no count is rounded to over 10 points below keep",
        example="a convolution of 8 channels with keep=0.7 and round_to=8")
    RANKED_HIGHER = left("ranked-higher", "all its channels rank above those of other layers that are removed",
        advice="nothing to do: that is what pruning.global_ranking asks for",
        example="a layer of few and distinct filters, under global_ranking")
    ROUNDED_ANYWAY = left("rounded-anyway",
        "{other}; and {size} channels at keep {keep:g} come to {size} in multiples of {round_to}",
        advice="nothing to do: the channels would stay even without the first reason",
        example="rpn.head.cls_logits of torchvision:fasterrcnn_mobilenet_v3_large_320_fpn")
    IGNORED = left("ignored", "{layer} is ignored",
        advice="take the layer out of the argument ignored, if it is to be pruned",
        example="any layer that the argument ignored of compress lists")
    MEMBER_OUTSIDE_SCOPE = left("member-outside-scope", "{layer} is outside the scope",
        advice="change scope.include or scope.exclude; all layers of a group must be inside the scope",
        example="a group that holds a layer named by scope.exclude")
    FROZEN = left("frozen", "{layer} is frozen (its weight needs no gradient): fine-tuning could not repair it",
        advice="set frozen=True of NortonHook, or unfreeze the layer, if it is to be changed",
        example="the stem and the first stage of mmdet's backbones (frozen_stages=1)")
    LINEAR_KEPT = left("linear-kept", "outputs of Linear layers are not to be pruned (pruning.linear)",
        advice="set pruning.linear to true, if they are to be pruned",
        example="the inner width of an MLP, with pruning.linear set to false")

    # What the trace found out about a group of channels.
    FIXED_WIDTH_TENSOR = Entry("fixed-width-tensor",
        "its channels are combined element-wise with a fixed-width tensor",
        advice="make the other tensor a parameter, or compute it from these channels; use torch.cat to fill a buffer",
        example="x + torch.arange(16.0).view(1, 16, 1, 1); buffer[:, 2:18] = x; torchvision:ssd300_vgg16")
    FIXED_WIDTH_MATRIX = Entry("fixed-width-matrix", "its channels are multiplied by a matrix of fixed width",
        advice="make the matrix a parameter of a layer, so that its rows can be removed with the channels",
        example="x.flatten(2).transpose(1, 2) @ torch.randn(16, 4)")
    FIXED_WIDTH_LAYER = Entry("fixed-width-layer", "a layer of fixed width reads its channels",
        advice="nothing to do where the layer is scripted or fused; otherwise let an nn.Module hold its weight",
        example="a layer before a scripted one; mmdet:nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py")
    PADDED_POSITION = Entry("padded-position", "its channels are combined with zero-padded channels of fixed width",
        advice="project the shortcut by a 1x1 convolution instead of padding it, if the group is to be pruned",
        example="the convolution beside a shortcut whose missing channels are padded with zeros (ResNets for CIFAR)")
    WIDTH_AS_VALUE = Entry("width-as-value", "its width enters a computed value",
        advice="read the width off the tensor only to give sizes or a factor of scale; keep other uses constant",
        example="x + float(x.shape[1]); x * math.cos(x.shape[1])")
    WIDTH_AS_SCALE = Entry("width-as-scale", "its width sets the scale of an attention whose rows are not known",
        advice="compute the keys by layers without an activation, so that their weights can be rescaled",
        example="scaled_dot_product_attention(q(x), relu(k(x)), v(x)); relu(x) / math.sqrt(x.shape[1])")
    COMPUTED_WIDTH = Entry("computed-width", "its width is computed from the width of other channels",
        advice="give the sizes as widths of the tensors themselves, or as whole multiples or parts of these",
        example="context_encoder.conv of torchvision:raft_small")
    FOREIGN_SIZE = Entry("foreign-size", "its width is the size of a tensor of other origin",
        advice="take the size of a reshape from the tensor that is reshaped",
        example="stage3.6.branch2.5 of torchvision:shufflenet_v2_x0_5")
    BY_POSITION = Entry("by-position", "the code selects {which} of its channels by position",
        advice="split into equal parts (chunk), or slice ranges from the start, if the group is to be pruned",
        example="x[:, [3, 1]]; x[:, 0]; box scores of torchvision:fcos_resnet50_fpn")
    BY_NUMBER = Entry("by-number", "the number of one of its channels is used",
        advice="nothing to do: numbers of channels, such as classes, would change their meaning",
        example="x.max(1)[1].float()")
    ROWS_BY_NUMBER = Entry("rows-by-number", "its rows are looked up by number",
        advice="nothing to do: entries of a table cannot be removed without changing the numbers that ask for them",
        example="torch.nn.functional.embedding(numbers, table) with a table that a layer computes")
    OVER_CHANNELS = Entry("over-channels", "{operation} runs over its channels",
        advice="nothing to do: positions of the channels matter to this operation",
        example="nn.Conv3d over a map whose depth is its channels; x.roll(3, 1)")
    TAKEN_OVER_CHANNELS = Entry("taken-over-channels", "{operation} is taken over its channels",
        advice="nothing to do: without some channels the outcome for the others would differ",
        example="x.softmax(1); class scores of torchvision:ssd300_vgg16")
    COMPUTED_KERNEL = Entry("computed-kernel", "a kernel computed for each image is made of them or reads them",
        advice="nothing to do: the kernel's size is that of another layer",
        example="a convolution whose weight a layer computes; experts mixed otherwise than in timm's CondConv2d")
    GROUPED_TRANSPOSED = Entry("grouped-transposed", "a grouped transposed convolution produces these channels",
        advice="nothing to do: its filters are numbered within their groups; groups=1 is pruned",
        example="nn.ConvTranspose2d(16, 16, 2, groups=4)")
    WHOLE_GROUPS = Entry("whole-groups", "the grouped convolution that reads these channels loses whole groups only",
        advice="nothing to do: the channels within its groups stay",
        example="the layer before a 1x1 convolution that shares its weight with one of 32 groups of 16 channels")
    RECURRENT = Entry("recurrent", "its channels are states of a recurrent layer",
        advice="nothing to do: states of recurrent layers keep their width, inputs are pruned",
        example="the Linear layer that computes the first state of an nn.LSTM")
    TOO_LARGE = Entry("too-large", "following its channels needs too much memory",
        advice="give a smaller example_inputs (image size, batch 1)",
        example="a tensor of more than 16 million values that differ in their channels")
    NOTHING_TO_COMPUTE = Entry("nothing-to-compute", "the example gives it nothing to compute",
        advice="give an example on which it computes something, or the forward_fn of zoo.forward_of (torchvision)",
        example="the mask head of a Mask R-CNN of torchvision, called as it is on an image without objects")
    NO_RULE = Entry("no-rule", "no rule follows channels through {operation}",
        advice="say what it does to channels (channels.register_rule), report it, or use operations that are followed",
        example="cummax in mmdet:cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py")
    RULE_DECLINED = Entry("rule-declined", "the rule for {operation} does not cover this use of it",
        advice="report the operation with its arguments; or write the step in another way",
        example="index_put in a Mask R-CNN of torchvision, called as it is")
    RULE_FAILED = Entry("rule-failed", "the rule for {operation} failed ({error}: {message})",
        advice="a mistake in norton_plugin or in a rule that you registered: report it with the debug log's traceback",
        example="none is known; a registered rule that raises an exception")
    MAY_BE_READ = Entry("may-be-read", "{layer}, which neither the example nor training runs, may read its channels",
        advice="give an example_inputs or a forward_fn that runs this layer, or remove it from the model",
        example="if x.shape[-1] > 64: x = self.extra(x), traced on a smaller image")
    UNSEEN_CODE = Entry("unseen-code", "{module} computes in code that cannot be followed",
        advice="compute with torch operations instead of NumPy, Python numbers or scripted code",
        example="a module that calls x.numpy() and makes a new tensor from the result")
    NOT_CONSUMED = Entry("not-consumed", "no traced operation consumes these channels",
        advice="nothing to do where a compiled operator reads them; torch.library makes such an operator visible",
        example="a layer whose outputs only a compiled operator reads, bound past PyTorch's dispatcher")

    # What cannot be traced, or is not reached by a trace.
    UNTRACEABLE = Entry("untraceable",
        "the model's channel dependencies cannot be traced ({error}: {message}); check example_inputs, or leave "
        "pruning out of the recipe",
        advice="check that the model runs on example_inputs; what is below it is traced part by part",
        example="a module that tests what its tensors are stored in, or refuses subclasses of int as sizes")
    TRACE_TIME = Entry("trace-time", "the channels could not be followed within the time allowed for it",
        advice="raise time_limit, or give a smaller example_inputs",
        example="the whole model, where its loops take longer than time_limit")
    PARTS_NOT_RUN = Entry("parts-not-run", "the model does not run on the example ({error}: {message})",
        advice="give an example of the shape, dtype and device that the model expects",
        example="the whole model, where it runs once and fails on the next run")
    NOT_TRACED = Entry("not-traced", "it is outside of what is traced",
        advice="give a forward_fn that runs this layer as well, if it is to be pruned",
        example="the second stage of mmdet:double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py")
    NOT_FOLLOWED = Entry("not-followed",
        "its channels are not followed: it computes from constants alone, or in code that cannot be seen",
        advice="nothing to do where it computes from constants; otherwise use plain torch operations",
        example="stage4.0.branch1.0 of torchvision:shufflenet_v2_x0_5")
    PARAMETRIZED = Entry("parametrized", "{what} computes its weight; {remedy} ends that",
        advice="call the function that is named on the layer before compressing",
        example="a layer under torch.nn.utils.parametrizations.weight_norm or torch.nn.utils.weight_norm")

    # What planning and proving a cut found out.
    NO_FILTERS = Entry("no-filters", "no layer whose filters could be compared makes these channels",
        advice="nothing to do: there is no convolution, Linear layer or CPDBlock to compare",
        example="channels of an embedding table or of a bare parameter")
    NOT_COMPARABLE = Entry("not-comparable", "its filters cannot be compared ({error}: {message})",
        advice="choose another pruning.criterion, or leave the layer out of the scope",
        example="a layer whose filters are too many for the memory that their distances need")
    UNPROVED = Entry("unproved", "nothing that the model computes on the example tells whether it is right",
        advice="return tensors from the model, or give a forward_fn that does",
        example="a model that returns a Python number")
    PROOF_TIME = Entry("proof-time", "could not be verified within the time allowed for it",
        advice="raise time_limit, or give a smaller example_inputs",
        example="torchvision:maskrcnn_resnet50_fpn_v2 at a limit of 60 s")
    DIFFERS = Entry("differs", "the pruned model differs from the masked one by {error:.1e} (accepted: {limit:.1g})",
        advice="report the model: the trace misunderstands it; the group is left as it was",
        example="torchvision:raft_small")
    BREAKS = Entry("breaks", "pruning it breaks the model ({error}: {message})",
        advice="read widths off the tensors instead of writing them as numbers into the code; or report the model",
        example="mmdet:pvt/retinanet_pvt-l_fpn_1x_coco.py")
    BREAKS_AROUND = Entry("breaks-around", "with it the model does not run ({error}: {message})",
        advice="leave the part out of the scope; what stands around it expects its former widths",
        example="a part that runs by itself, inside a model that checks its widths")

    # What keeps a convolution from becoming a block; the status speaks of pruning alone.
    OUTSIDE_SCOPE = left("outside-scope", "outside the scope",
        advice="change scope.include or scope.exclude, if it is to be decomposed",
        example="any layer that scope.exclude names")
    NO_RANK = left("no-rank", "no rank or size is asked for it, or the plan of a budget leaves it dense",
        advice="set decomposition.rank or share, an entry in ranks or layers, or a lower budget, to decompose it",
        example="any layer whose entry in decomposition.ranks is null")
    KERNEL_1X1 = left("kernel-1x1", "1x1 kernel: components of single filters save nothing, it is pruned only",
        advice="nothing to do: it is pruned; level 'layer' with a share or components decomposes it",
        example="layer2.0.downsample.0 of timm:resnet34")
    ONE_INPUT_CHANNEL = left("one-input-channel",
        "one input channel per filter (depthwise, or a grey image): a decomposition saves nothing",
        advice="nothing to do: it is pruned with the layer before it",
        example="depthwise layers of timm:efficientnet_b0")
    RANK_TOO_HIGH = left("rank-too-high",
        "rank {rank} needs more MACs than the dense convolution (break-even rank {limit})",
        advice="lower the rank, or set decomposition.allow_more_macs to decompose all the same",
        example="conv1 of timm:resnet18 at rank 20 (a stem of three channels)")
    RANK_TOO_LOW = left("rank-too-low", "rank {rank} leaves fewer MACs than one component of each cluster needs",
        advice="raise the rank, or ask for fewer clusters",
        example="a convolution of 8 filters at rank 1, level cluster and 8 clusters")
    SHARE_TOO_SMALL = left("share-too-small",
        "one component (of each filter or cluster) takes {least:.3f} of the dense layer's MACs, the share is {share:g}",
        advice="raise decomposition.share, or choose the level 'layer', whose components are the cheapest",
        example="conv1 of timm:resnet18 at level filter and share 0.2")
    TOO_MANY_COMPONENTS = left("too-many-components",
        "{components} components need more MACs than the dense layer (at most {limit} save some)",
        advice="lower the components, or set decomposition.allow_more_macs to decompose all the same",
        example="layer1.0.conv1 of timm:resnet18 at 300 components")
    TOO_FEW_COMPONENTS = left("too-few-components",
        "{components} components are fewer than its {clusters} clusters, each of which needs one",
        advice="raise the components, or ask for fewer clusters",
        example="any convolution in 32 groups at 16 components")
    TOO_MANY_CLUSTERS = left("too-many-clusters", "{clusters} clusters are asked for, and it has {filters} filters",
        advice="lower decomposition.clusters, or give this layer a number of its own in decomposition.layers",
        example="any layer of 8 filters at 16 clusters")
    NMSE_TOO_HIGH = left("nmse-too-high",
        "NMSE {nmse:.3f} at its highest useful rank {rank} is above the target {target:g}",
        advice="raise decomposition.target_nmse, or give the layer a rank of its own",
        example="most layers with random weights at rank auto")
    NOT_A_CONVOLUTION = left("not-a-convolution", "{module} is not a 1-D, 2-D or 3-D convolution",
        advice="nothing to do: it is pruned", example="nn.ConvTranspose2d, nn.ConvTranspose3d")
    OWN_FORWARD = left("own-forward", "{module} computes its output in its own way, and no exact rule for it is known",
        advice="report the kind of layer, if it is a common one", example="an nn.Conv2d with a forward pass of its own")
    MIXED_KERNEL = left("mixed-kernel", "its kernel is mixed for each image from those of experts: it is pruned only",
        advice="nothing to do: it is pruned", example="CondConv2d of timm:tf_efficientnet_cc_b0_4e")
    HAS_HOOKS = left("has-hooks", "carries hooks that a replacement would lose",
        advice="remove the hooks before compressing and register them afterwards",
        example="a convolution with register_forward_hook")
    ON_META = left("on-meta", "its weight is on the meta device: load weights first",
        advice="load weights before compressing", example="nn.Conv2d(4, 6, 3, device='meta')")
    BLOCK_DIFFERS = left("block-differs",
        "its block differs from it by {error:.1e} with the same weight (at most {limit:g} is accepted)",
        advice="report the kind of layer: it does not compute what its attributes say",
        example="a convolution whose padding another module has changed")
    BLOCK_NOT_COMPARED = left("block-not-compared", "it cannot be compared with its block ({error}: {message})",
        advice="check that the layer runs by itself on a map of its input width",
        example="a convolution that only runs inside its model")
    DECOMPOSED = left("decomposed", "decomposed already: it keeps its level and rank",
        advice="compress the dense model for another size", example="a block of an artefact that is compressed again")
    LINEAR = left("linear", "a Linear layer is pruned only", example="fc of timm:resnet18 in norton inspect",
        advice="nothing to do: it is pruned; decomposition.linear with a share or components decomposes it")
    # fmt: on

    def __repr__(self) -> str:
        """Return the name: a member holds too many words to be printed."""
        return f"Reason.{self.name}"

    @property
    def code(self) -> str:
        """What files hold: kebab-case, never changed once published."""
        return self.value.code

    @property
    def template(self) -> str:
        """One line of plain English with named fields."""
        return self.value.template

    @property
    def blocks(self) -> bool:
        """Whether a group left for it keeps a model from the status "full"."""
        return self.value.blocks

    @property
    def advice(self) -> str:
        """What the user can do about it, or "nothing to do" and why."""
        return self.value.advice

    @property
    def example(self) -> str:
        """A model or a layer where it happens."""
        return self.value.example

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the template's fields, in its order."""
        names = [name for _, name, _, _ in Formatter().parse(self.value.template) if name is not None]
        return tuple(dict.fromkeys(names))

    def because(self, **details: str | int | float | Cause) -> Cause:
        """Return this reason as it holds for one layer or group.

        Args:
            details: A value for every field of the template.

        Raises:
            TypeError: A field is missing, or the template has no such field.
        """
        if set(details) != set(self.fields):
            raise TypeError(f"the reason {self.code} has the fields {list(self.fields)}; got {sorted(details)}")
        return Cause(self, tuple((name, details[name]) for name in self.fields))

    def from_error(self, error: Exception, *, length: int = 200, **details: str | int | float | Cause) -> Cause:
        """Return this reason with the fields ``error`` and ``message`` filled in from an exception.

        Args:
            error: Gives its type and its text.
            length: Characters of the text that are kept.
            details: The other fields.
        """
        return self.because(error=type(error).__name__, message=message_of(error)[:length], **details)
